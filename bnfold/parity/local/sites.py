"""Sites: linears that absorb the norms right behind them, and the map of those norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.folding.expressions import ONE, ZERO, Array, Expr, Leaf, Scalar, add, mul, view
from bnfold.folding.facts import Linear, Norm


@dataclass(frozen=True)
class Site:
    """A linear of the reference and the norms right behind it that it absorbs, with its tensors' names in the fold.

    bias: empty where the folded linear has none.
    """

    linear: Linear
    absorbed: tuple[Norm, ...]
    weight: str
    bias: str

    @property
    def norms(self) -> str:
        """The norms as a sentence names them."""
        return " and ".join(f"'{norm.name}'" for norm in self.absorbed)


def map_of(norms: Sequence[Norm]) -> tuple[Expr, Expr]:
    """Scale and shift of the norms applied one after the other, the first one first: (C,) or scalars."""
    scale: Expr = ONE
    shift: Expr = ZERO
    for norm in norms:
        scale, shift = mul(norm.scale, scale), add(mul(norm.scale, shift), norm.shift)
    return scale, shift


def output_channels(linear: Linear) -> Array:
    """The output channel of each weight element by its first two indices.

    int64, (O, 1), or (I, O/g) where the input channels come first. Source: the layouts of ONNX Conv-11 (O, I/g, *K),
    ConvTranspose-11 (I, O/g, *K), Gemm-13.
    """
    if linear.out_first:
        return np.arange(linear.channels, dtype=np.int64)[:, None]
    inputs, per_group = linear.weight.shape[:2]
    group = np.arange(inputs, dtype=np.int64) // max(1, inputs // linear.groups)
    return np.asarray(group[:, None] * per_group + np.arange(per_group, dtype=np.int64)[None, :])


def bias_of(linear: Linear, scale: Expr, shift: Expr) -> Expr:
    """The folded bias: scale * beta * bias + shift, (O,) or a scalar."""
    if linear.bias is None:
        return shift
    stored = view(Leaf(linear.bias), (math.prod(linear.bias.shape),))
    return add(mul(scale, mul(Scalar(linear.beta), stored)), shift)
