"""Single elements of a large expression in double-double: for the few numbers that quick arithmetic cannot round."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from bnfold.folding import double_double as dd
from bnfold.folding.double_double import DoubleDouble
from bnfold.folding.evaluation import InDoubleDouble, Memo, Source
from bnfold.folding.expressions import (
    Embed,
    Expr,
    Given,
    Join,
    Leaf,
    Op,
    Permute,
    Scalar,
    Shape,
    Spread,
    Take,
    Total,
    View,
    operands,
)
from bnfold.folding.products import reached

Points: TypeAlias = np.ndarray[Any, np.dtype[np.intp]]  # positions of elements in row-major order
_Demand: TypeAlias = tuple[int, int]  # the id of an operand, and which of the demands on it

_ARITHMETIC = InDoubleDouble()


@dataclass
class _Asked:
    """The elements of a node that are asked for: demand by demand, then each once."""

    demands: list[Points] = field(default_factory=list)
    unique: Points | None = None
    places: list[Points] = field(default_factory=list)  # of each demand's elements among the unique ones
    of: list[_Demand] = field(default_factory=list)
    inside: list[Points] = field(default_factory=list)  # of a Join or Embed: which elements each part gives

    def settle(self) -> Points:
        """All elements that are asked for, each once."""
        if len(self.demands) == 1:
            self.unique, self.places = self.demands[0], [np.arange(len(self.demands[0]))]
        else:
            self.unique, inverse = np.unique(np.concatenate(self.demands), return_inverse=True)
            ends = np.cumsum([len(demand) for demand in self.demands])
            self.places = np.split(inverse, ends[:-1])
        return self.unique


def values_at(expr: Expr, points: Points, known: Memo, source: Source) -> DoubleDouble:
    """The elements of an expression at some positions, shape (n,). known: values of some of its nodes."""
    nodes = reached(expr, known)
    asked: dict[int, _Asked] = {id(node): _Asked() for node in nodes}
    asked[id(expr)].demands.append(points)
    for node in reversed(nodes):
        here = asked[id(node)]
        wanted = here.settle()
        if id(node) not in known:
            for part, below in zip(operands(node), _below(node, wanted, here), strict=True):
                here.of.append((id(part), len(asked[id(part)].demands)))
                asked[id(part)].demands.append(below)
    found: dict[int, DoubleDouble] = {}
    for node in nodes:
        here = asked[id(node)]
        of = [_picked(found[part], asked[part].places[at]) for part, at in here.of]
        found[id(node)] = _value(node, here, of, known, source)
    return found[id(expr)]


def points_each(expr: Expr, known: Memo) -> int:
    """How many elements of the source one element may need: the product of all sums, an upper bound."""
    counts: dict[int, int] = {}
    for node in reached(expr, known):
        below = 1 if id(node) in known else max((counts[id(part)] for part in operands(node)), default=1)
        counts[id(node)] = below * (
            math.prod(node.of.shape[axis] for axis in node.axes) if isinstance(node, Total) else 1
        )
    return max(1, counts[id(expr)])


def _below(node: Expr, points: Points, here: _Asked) -> list[Points]:
    """The elements of each operand that elements of a node are made of."""
    if isinstance(node, Scalar | Leaf | Given):
        return []
    if isinstance(node, View):
        return [points]
    at = list(np.unravel_index(points, node.shape))
    match node:
        case Permute(of, perm):
            return [_flat([at[perm.index(axis)] for axis in range(len(perm))], of.shape)]
        case Spread(of, _):
            return [_flat(at, of.shape)]
        case Take(of, axis, indices):
            at[axis] = np.asarray(indices, np.intp)[at[axis]]
            return [_flat(at, of.shape)]
        case Join(parts, axis):
            return _below_join(parts, axis, at, here)
        case Embed(of, _, start, step):
            return [_below_embed(of.shape, start, step, at, here)]
        case Total(of, axes):
            sizes = [of.shape[axis] for axis in axes]
            steps = np.indices(sizes, np.intp).reshape(len(axes), -1)
            rows = [index[:, None] for index in at]
            for axis, along in zip(axes, steps, strict=True):
                rows[axis] = along[None, :]
            return [_flat(list(np.broadcast_arrays(*rows)), of.shape).reshape(-1)]
        case Op(_, args):
            return [_flat(at[len(at) - len(arg.shape) :], arg.shape, len(points)) for arg in args]


def _flat(at: list[Points], shape: Shape, count: int = 0) -> Points:
    """Positions in row-major order; the index along an axis of size 1 is 0."""
    if not shape:
        return np.zeros(count, np.intp)
    inside = [np.zeros_like(index) if size == 1 else index for index, size in zip(at, shape, strict=True)]
    return np.asarray(np.ravel_multi_index(tuple(inside), shape))


def _below_join(parts: tuple[Expr, ...], axis: int, at: list[Points], here: _Asked) -> list[Points]:
    below, start = [], 0
    for part in parts:
        stop = start + part.shape[axis]
        inside = np.flatnonzero((at[axis] >= start) & (at[axis] < stop))
        moved = [index[inside] - (start if which == axis else 0) for which, index in enumerate(at)]
        here.inside.append(inside)
        below.append(_flat(moved, part.shape))
        start = stop
    return below


def _below_embed(shape: Shape, start: tuple[int, ...], step: tuple[int, ...], at: list[Points], here: _Asked) -> Points:
    is_inside = np.ones(len(at[0]) if at else 1, bool)
    moved = []
    for index, size, first, stride in zip(at, shape, start, step, strict=True):
        place, rest = np.divmod(index - first, stride)
        is_inside &= (rest == 0) & (place >= 0) & (place < size)
        moved.append(place)
    inside = np.flatnonzero(is_inside)
    here.inside.append(inside)
    return _flat([index[inside] for index in moved], shape, len(inside))


def _picked(x: DoubleDouble, places: Points) -> DoubleDouble:
    return DoubleDouble(x.hi[places], x.lo[places])


def _value(node: Expr, here: _Asked, of: list[DoubleDouble], known: Memo, source: Source) -> DoubleDouble:
    points = here.unique
    if points is None:
        raise RuntimeError("the elements to compute are settled first")
    if id(node) in known:
        value = known[id(node)][1]
        return DoubleDouble(value.hi.reshape(-1)[points], value.lo.reshape(-1)[points])
    match node:
        case Scalar(number):
            return dd.exact(np.full(len(points), number))
        case Given(values, _):
            return dd.exact(np.asarray(values, np.float64)[points])
        case Leaf(tensor):
            stored = source.load(tensor)
            return dd.exact(
                stored[np.unravel_index(points, stored.shape)] if stored.shape else np.full(len(points), stored)
            )
        case Join() | Embed():
            hi, lo = np.zeros(len(points)), np.zeros(len(points))
            for part, inside in zip(of, here.inside, strict=True):
                hi[inside], lo[inside] = part.hi, part.lo
            return DoubleDouble(hi, lo)
        case Total(inner, axes):
            count = math.prod(inner.shape[axis] for axis in axes)
            return dd.total(of[0].reshape((len(points), count)), (1,)).reshape((len(points),))
        case Op(kind, _):
            return _ARITHMETIC.combined(kind, of)
        case _:
            return of[0]
