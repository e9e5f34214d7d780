"""The closed list of edits that a plan is made of, and that an adapter carries out on a clone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from bnfold.folding import algebra
from bnfold.folding.facts import Array, Linear, Norm, leaves


@dataclass(frozen=True)
class SetWeights:
    """Give a linear the weight and the bias that absorb `map`; its alpha and beta become 1.

    The arrays are computed when they are asked for, one tensor at a time, and rounded once. `absorbed` are the
    norms that the map is composed of, the one next to the linear first.
    """

    linear: Linear
    map: algebra.ChannelMap
    absorbed: tuple[Norm, ...]

    def weight(self) -> Array:
        """The folded weight, in the dtype and layout of the old one."""
        return algebra.fold_weight(self.linear, self.map)

    def bias(self) -> Array:
        """The folded bias, shape (O,), in the dtype of the weight (a linear without a bias gets one)."""
        dtype = (self.linear.bias or self.linear.weight).load().dtype
        return algebra.round_to(algebra.folded_bias(self.linear, self.map), dtype)

    def sources(self, role: Literal["weight", "bias"]) -> tuple[str, ...]:
        """The names of the source tensors that the folded weight or bias is made of."""
        tensors = [self.linear.weight] if role == "weight" else [self.linear.bias] if self.linear.bias else []
        for norm in self.absorbed:
            tensors += leaves(norm.scale) if role == "weight" else norm.constants
        return tuple(dict.fromkeys(tensor.name for tensor in tensors))


@dataclass(frozen=True)
class Bypass:
    """Remove a norm: whoever reads its output reads its input instead."""

    norm: Norm


Edit: TypeAlias = SetWeights | Bypass
