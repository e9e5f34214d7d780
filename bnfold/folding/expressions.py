"""Expressions: what a folded tensor is made of, in real arithmetic, before anybody computes a number.

An expression is an immutable tree over constants of the source. Whoever needs numbers evaluates it in the arithmetic
of their choice: the planner and the adapters in double-double (`bnfold.folding.algebra`), the weight certificate
exactly (`bnfold.parity`). Every node knows its shape; the shapes follow numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Shape: TypeAlias = tuple[int, ...]
Operator: TypeAlias = Literal["add", "sub", "mul", "div", "sqrt"]


@dataclass(frozen=True)
class Tensor:
    """A handle on one constant of the source.

    `key` names the storage: two handles with equal keys are the same tensor. `load` gives its values in its own
    dtype (bfloat16 as the ml_dtypes scalar type) and may read from disk.
    """

    name: str
    dtype: str
    shape: Shape
    key: Hashable
    load: Callable[[], Array] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Scalar:
    """A number written in the graph itself: an epsilon, an exponent, a literal factor."""

    value: float

    @property
    def shape(self) -> Shape:
        """No axes."""
        return ()


@dataclass(frozen=True)
class Leaf:
    """A constant of the source."""

    tensor: Tensor

    @property
    def shape(self) -> Shape:
        """The shape of the tensor."""
        return self.tensor.shape


@dataclass(frozen=True)
class Given:
    """Small numbers that a move makes up: the mask of a border, a constant channel. Row-major, exact in float64."""

    values: tuple[float, ...]
    shape: Shape


@dataclass(frozen=True)
class View:
    """The same elements in the same order under another shape."""

    of: Expr
    shape: Shape


@dataclass(frozen=True)
class Permute:
    """The axes in another order, as numpy.transpose: axis i of the result is axis perm[i] of the operand."""

    of: Expr
    perm: tuple[int, ...]

    @cached_property
    def shape(self) -> Shape:
        """The sizes in the new order."""
        return tuple(self.of.shape[axis] for axis in self.perm)


@dataclass(frozen=True)
class Spread:
    """The operand repeated along its axes of size 1, as numpy.broadcast_to with equal rank."""

    of: Expr
    shape: Shape


@dataclass(frozen=True)
class Take:
    """The slices of one axis at some indices, repeated and reordered at will, as numpy.take."""

    of: Expr
    axis: int
    indices: tuple[int, ...]

    @cached_property
    def shape(self) -> Shape:
        """The shape with as many slices as there are indices."""
        return (*self.of.shape[: self.axis], len(self.indices), *self.of.shape[self.axis + 1 :])


@dataclass(frozen=True)
class Join:
    """The operands behind one another along an axis, as numpy.concatenate."""

    parts: tuple[Expr, ...]
    axis: int

    @cached_property
    def shape(self) -> Shape:
        """The shape with the sizes along the axis added up."""
        first = self.parts[0].shape
        total = sum(part.shape[self.axis] for part in self.parts)
        return (*first[: self.axis], total, *first[self.axis + 1 :])


@dataclass(frozen=True)
class Total:
    """The sum over some axes, which stay with size 1."""

    of: Expr
    axes: tuple[int, ...]

    @cached_property
    def shape(self) -> Shape:
        """The shape with size 1 along the axes."""
        return tuple(1 if axis in self.axes else size for axis, size in enumerate(self.of.shape))


@dataclass(frozen=True)
class Embed:
    """Zeros of a shape with the operand in them: element k of an axis lands at `start + k * step`."""

    of: Expr
    shape: Shape
    start: tuple[int, ...]
    step: tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """An elementwise operation with numpy's broadcasting, in real arithmetic."""

    kind: Operator
    args: tuple[Expr, ...]

    @cached_property
    def shape(self) -> Shape:
        """The shape after broadcasting."""
        return np.broadcast_shapes(*(arg.shape for arg in self.args))


Expr: TypeAlias = Scalar | Leaf | Given | View | Permute | Spread | Take | Join | Total | Embed | Op

ONE = Scalar(1.0)
ZERO = Scalar(0.0)


def add(left: Expr, right: Expr) -> Expr:
    """left + right, without the addition of a literal zero."""
    if left == ZERO:
        return right
    return left if right == ZERO else Op("add", (left, right))


def sub(left: Expr, right: Expr) -> Expr:
    """left - right."""
    return left if right == ZERO else Op("sub", (left, right))


def mul(left: Expr, right: Expr) -> Expr:
    """left * right, without the multiplication by a literal one or zero."""
    if ZERO in (left, right):
        return ZERO
    if left == ONE:
        return right
    return left if right == ONE else Op("mul", (left, right))


def div(left: Expr, right: Expr) -> Expr:
    """left / right."""
    return left if right == ONE else Op("div", (left, right))


def sqrt(of: Expr) -> Expr:
    """The square root."""
    return Op("sqrt", (of,))


def view(of: Expr, shape: Shape) -> Expr:
    """The same elements under another shape; the operand itself where that is its shape."""
    if of.shape == shape:
        return of
    return View(of.of if isinstance(of, View) else of, shape)


def spread(of: Expr, shape: Shape) -> Expr:
    """The operand repeated along axes of size 1 to a shape of equal rank; itself where that is its shape."""
    return of if of.shape == shape else Spread(of, shape)


def shape_of(expr: Expr) -> Shape:
    """The shape that an expression has after broadcasting."""
    return expr.shape


def operands(expr: Expr) -> tuple[Expr, ...]:
    """The expressions that one is made of directly."""
    match expr:
        case Scalar() | Leaf() | Given():
            return ()
        case Op(_, args):
            return args
        case Join(parts, _):
            return parts
        case _:
            return (expr.of,)


def walk(expr: Expr) -> Iterator[Expr]:
    """Every node of an expression once, operands before what is made of them. Deep chains are no problem."""
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((operand, False) for operand in reversed(operands(node)))


def leaves(expr: Expr) -> tuple[Tensor, ...]:
    """The constants that an expression is made of, each once, in order of appearance."""
    return tuple(dict.fromkeys(node.tensor for node in walk(expr) if isinstance(node, Leaf)))


def size_of(expr: Expr) -> int:
    """The number of elements."""
    return math.prod(expr.shape)
