"""The exact value of an expression over whole tensors, element by element.

An index is followed through views, permutations and the like down to the constants; what it meets on the way is
computed once, so that the scale of a channel costs nothing more for its other elements. No recursion: compositions may
be thousands deep.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from bnfold.folding.expressions import (
    Array,
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
)
from bnfold.parity.weights.exact import Interval

Index: TypeAlias = tuple[int, ...]

_KEPT = 200_000  # values kept between two elements
_ZERO = Interval(0, 0, 0)


class Points:
    """The elements of one expression."""

    def __init__(self, expr: Expr) -> None:
        self.expr = expr
        self._known: dict[tuple[int, Index], Interval] = {}
        self._loaded: dict[int, Array] = {}

    def at(self, index: Index) -> Interval:
        """One element. Raises ParityError when a constant is not finite or an operation has no real result."""
        if len(self._known) > _KEPT:
            self._known.clear()
        known = self._known
        stack: list[tuple[Expr, Index]] = [(self.expr, index)]
        while stack:
            node, at = stack[-1]
            key = (id(node), at)
            if key in known:
                stack.pop()
                continue
            parts = list(_parts(node, at))
            missing = [(part, place) for part, place in parts if (id(part), place) not in known]
            if missing:
                stack += missing
                continue
            stack.pop()
            known[key] = self._combined(node, at, [known[id(part), place] for part, place in parts])
        return known[id(self.expr), index]

    def _combined(self, node: Expr, at: Index, of: list[Interval]) -> Interval:
        match node:
            case Scalar(value):
                return Interval.of(float(value))
            case Leaf():
                return Interval.of(self._load(node)[at].item())
            case Given(values, shape):
                return Interval.of(float(values[_flat(at, shape)]))
            case Op("sqrt", _):
                return of[0].sqrt()
            case Op("mul", _):
                return of[0] * of[1]
            case Op("sub", _):
                return of[0] - of[1]
            case Op("div", _):
                return of[0] / of[1]
            case _:  # a sum, of one term in a view and of none in the zeros around an embedded tensor
                return sum(of[1:], of[0]) if of else _ZERO

    def _load(self, node: Leaf) -> Array:
        found = self._loaded.get(id(node))
        if found is None:
            found = np.asarray(node.tensor.load())
            if found.dtype.kind not in "fiub":  # bfloat16, whose items are no floats
                found = found.astype(np.float64)
            self._loaded[id(node)] = found
        return found


def evaluate(expr: Expr) -> Array:
    """Every element of a small expression: an object array of intervals.

    Raises ParityError when a constant is not finite or an operation has no real result.
    """
    points = Points(expr)
    found = np.empty(expr.shape, object)
    for index in np.ndindex(*expr.shape):
        found[index] = points.at(index)
    return found


def _parts(node: Expr, at: Index) -> Iterator[tuple[Expr, Index]]:
    """The elements of its operands that an element of an expression is made of."""
    match node:
        case View(of, shape):
            yield of, _unflat(_flat(at, shape), of.shape)
        case Permute(of, perm):
            places: dict[int, int] = dict(zip(perm, at, strict=True))
            yield of, tuple(places[axis] for axis in range(len(at)))
        case Spread(of, _):
            yield of, _broadcast(at, of.shape)
        case Take(of, axis, indices):
            yield of, (*at[:axis], indices[at[axis]], *at[axis + 1 :])
        case Join(parts, axis):
            place = at[axis]
            for part in parts:
                if place < part.shape[axis]:
                    yield part, (*at[:axis], place, *at[axis + 1 :])
                    return
                place -= part.shape[axis]
        case Embed(of, _, start, step):
            pairs = [divmod(i - begin, by) for i, begin, by in zip(at, start, step, strict=True)]
            if all(not rest and 0 <= place < size for (place, rest), size in zip(pairs, of.shape, strict=True)):
                yield of, tuple(place for place, _ in pairs)
        case Total(of, axes):
            ranges: list[Any] = [range(size) if axis in axes else (at[axis],) for axis, size in enumerate(of.shape)]
            yield from ((of, index) for index in itertools.product(*ranges))
        case Op(_, args):
            yield from ((arg, _broadcast(at, arg.shape)) for arg in args)


def _broadcast(at: Index, shape: Shape) -> Index:
    """The place in an operand of numpy's broadcasting."""
    return tuple(
        0 if size == 1 else place for place, size in zip(at[len(at) - len(shape) :], shape, strict=True)
    )  # fmt: skip


def _flat(at: Index, shape: Shape) -> int:
    place = 0
    for i, size in zip(at, shape, strict=True):
        place = place * size + i
    return place


def _unflat(place: int, shape: Shape) -> Index:
    at = []
    for size in reversed(shape):
        place, rest = divmod(place, size)
        at.append(rest)
    return tuple(reversed(at))
