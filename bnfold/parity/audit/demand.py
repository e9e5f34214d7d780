"""A tensor of the folded network and what it must be; the small print of constants."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bnfold.folding.expressions import Array, Expr, Leaf, Permute, Scalar, Spread, View, shape_of, size_of, spread, view
from bnfold.folding.facts import Linear, Norm
from bnfold.folding.onnx_edits import Role


@dataclass(frozen=True, eq=False)
class Demand:
    """A tensor of the folded network and what it must be. array: (its shape), zeros where it is missing.

    site: the linear of the original network. norms: those it took in. linear: of the folded network, for channels.
    unfit: why no fold may do that, where none may. before: the original linear, where the demand is one on a linear.
    guessed: the two linears were set side by side by their order alone.
    """

    tensor: str
    role: Role
    site: str
    array: Array
    expr: Expr
    norms: tuple[Norm, ...] = ()
    linear: Linear | None = None
    unfit: str = ""
    before: Linear | None = None
    guessed: bool = False

    @property
    def original(self) -> Array | None:
        """The tensor of the original network that it must be, bit for bit; None for one that is computed."""
        found = None if isinstance(self.expr, Scalar) else stored_in(self.expr)
        return None if found is None or found[1].size != self.array.size else found[1]


@dataclass
class Demands:
    """All demands. gaps: steps that went, or came, where nothing is known to take them in or give them."""

    tensors: list[Demand] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    kept: dict[str, Norm] = field(default_factory=dict)
    taken: dict[str, Norm] = field(default_factory=dict)
    lost: dict[str, Norm] = field(default_factory=dict)


def stored_in(expr: Expr) -> tuple[str, Array] | None:
    """The tensor that an expression is, under whatever shape (a matrix that was turned over included)."""
    match expr:
        case Leaf(tensor):
            return tensor.name, tensor.load()
        case Scalar(value):
            return f"(the number {value:g})", np.asarray([value], np.float64)
        case View(of, _):
            return stored_in(of)
        case Spread(of, shape) if size_of(of) == size_of(expr) and len(of.shape) == len(shape):
            return stored_in(of)
        case Permute(Leaf(tensor), perm):
            return tensor.name, tensor.load().transpose(perm)
    return None


def fitted(expr: Expr, channels: int) -> Expr:
    """An expression over channels, spread where it is one number."""
    shape = shape_of(expr)
    if shape == (channels,) or not shape:
        return expr
    if size_of(expr) == channels:
        return view(expr, (channels,))
    return spread(view(expr, (1,)), (channels,)) if size_of(expr) == 1 else expr
