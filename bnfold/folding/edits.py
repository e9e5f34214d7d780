"""The closed list of edits that a plan is made of, and that an adapter carries out on a clone, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bnfold.folding import algebra
from bnfold.folding.carriers import Window
from bnfold.folding.expressions import Array, Expr, leaves
from bnfold.folding.facts import Carrier, Linear, Norm


@dataclass(frozen=True)
class SetWeights:
    """Give a linear another weight and bias; its alpha and beta become 1, its window and groups those given here.

    linear: as it is in the source. weight: in the layout of the old one, alpha included; its sizes may differ (a
    kernel that took in a smaller or larger one, another channel). bias: (O,), beta included; None: it has none.
    norms: all that went into it, for the fold map. behind: the norms right behind the linear, first one first, where
    the edit does nothing but absorb them; None where it does anything else. merged: the linears it replaces too.
    """

    linear: Linear
    weight: Expr
    bias: Expr | None
    window: Window | None
    groups: int
    norms: tuple[Norm, ...]
    behind: tuple[Norm, ...] | None
    merged: tuple[Linear, ...] = ()

    @property
    def weight_dtype(self) -> str:
        """The dtype of the new weight: that of the old one."""
        return self.linear.weight.dtype

    @property
    def bias_dtype(self) -> str:
        """The dtype of the new bias: that of the old one, or of the weight where there was none."""
        return (self.linear.bias or self.linear.weight).dtype

    def weight_values(self) -> Array:
        """The new weight, rounded once."""
        return algebra.rounded(self.weight, self.weight_dtype)

    def bias_values(self) -> Array | None:
        """The new bias, rounded once; None where there is none."""
        return None if self.bias is None else algebra.rounded(self.bias, self.bias_dtype)


@dataclass(frozen=True)
class Bypass:
    """Remove a norm: whoever reads its output reads its input instead."""

    norm: Norm


@dataclass(frozen=True)
class Redirect:
    """Remove a sum whose terms were merged: whoever reads its output reads the value `to` instead."""

    carrier: Carrier
    to: str


@dataclass(frozen=True)
class SetAffine:
    """Put `scale * x + shift` in place of a norm.

    scale, shift: (C,) over `norm.axis`, or scalars; a scale of ONE or a shift of ZERO is left out.
    """

    norm: Norm
    scale: Expr
    shift: Expr
    norms: tuple[Norm, ...]


@dataclass(frozen=True)
class AddConstant:
    """Add a constant to a value, before all of its readers. constant: of the value's rank, 1 for the batch."""

    value: str
    constant: Expr
    like: Linear
    norms: tuple[Norm, ...]


@dataclass(frozen=True)
class SetSlope:
    """Put a PReLU with a slope of its own for each channel in place of a LeakyReLU or PReLU. slope: (C,)."""

    carrier: Carrier
    slope: Expr
    axis: int
    like: Linear
    norms: tuple[Norm, ...]


Edit: TypeAlias = SetWeights | Bypass | Redirect | SetAffine | AddConstant | SetSlope


def sources(expr: Expr) -> tuple[str, ...]:
    """The names of the source tensors that an expression is made of."""
    return tuple(dict.fromkeys(tensor.name for tensor in leaves(expr)))
