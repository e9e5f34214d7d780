"""Rounding to the dtype of a weight: once, to the nearest, ties to even.

Large tensors are computed in float64 with a bound on the error (`bnfold.folding.bounded`). An element whose lower and
upper bound round to the same number is done (the rounding test of Ziv, ACM TOMS 17, 1991); the few others are computed
in double-double. The result is that of double-double everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from bnfold.folding.bounded import Bounded, InBounds, NoBound
from bnfold.folding.double_double import F64, DoubleDouble
from bnfold.folding.evaluation import InDoubleDouble, Memo, Run, Source, evaluate, movement, settle_shapes
from bnfold.folding.expressions import Array, Embed, Expr, Join, Permute, Shape, Spread, Take, View, operands, walk
from bnfold.folding.points import Points, points_each, values_at
from bnfold.folding.products import regrouped

# Largest finite value of each dtype that a fold can be rounded to (IEEE 754; bfloat16: 8 bits of significand).
LARGEST = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
}

_BLOCK = 1 << 16  # elements computed at a time: their float64 copies stay in the cache
_SMALL = 1 << 12  # elements of an expression that is computed in double-double at once
_POINTS = 1 << 18  # elements of the source that are gathered at a time

_UNIT = 2.0**-53

X = TypeVar("X")


def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype of a name: float16, bfloat16, float32 or float64."""
    if name == "bfloat16":
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(name)


def round_to(x: DoubleDouble, dtype: np.dtype[Any]) -> Array:
    """The nearest values of `dtype` (ties to even), rounded once. dtype: float16, bfloat16, float32 or float64.

    Narrowing goes through round-to-odd (Boldo and Melquiond, IEEE TC 57, 2008), which makes the second rounding
    harmless: numpy narrows float64 to float32 and float16 once, but ml_dtypes narrows to bfloat16 via float32.
    """
    with np.errstate(all="ignore"):
        if dtype.name == "float64":
            return x.hi + x.lo
        values: Array = _to_odd(x.hi, x.lo)
        if dtype.name == "bfloat16":
            narrow = values.astype(np.float32)
            values = _to_odd(narrow, values - narrow.astype(np.float64))
        return values.astype(dtype)


def _to_odd(value: Array, rest: Array) -> Array:
    """value + rest, of which value is the nearest, moved to the neighbour with an odd significand if inexact."""
    bits: np.ndarray[Any, np.dtype[np.integer[Any]]]
    bits = value.view(np.int64 if value.dtype == np.float64 else np.int32)
    towards = np.where(rest > 0, np.inf, -np.inf).astype(value.dtype)
    move = (rest != 0) & (bits & 1 == 0) & np.isfinite(value)
    return np.where(move, np.nextafter(value, towards), value)


def rounded(expr: Expr, dtype: str) -> Array:
    """The nearest values of a dtype (ties to even), rounded once; an array of its own. The sign of a zero is open."""
    target = dtype_of(dtype)
    settle_shapes(expr)
    source = Source()
    done: dict[int, Array] = {}
    with np.errstate(all="ignore"):
        for node in _movements(expr):
            if isinstance(node, Join):
                done[id(node)] = np.concatenate([done[id(part)] for part in node.parts], node.axis)
            elif isinstance(node, View | Permute | Spread | Take | Embed):
                done[id(node)] = movement(node, node.shape)(done[id(node.of)])
            else:
                done[id(node)] = _computed(node, target, source)
    return np.asarray(done[id(expr)], target, order="C")  # what was computed is nobody else's


def _movements(expr: Expr) -> list[Expr]:
    """The changes of layout on top of an expression and what they move, operands first: rounding can go below them."""
    nodes: list[Expr] = []
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    seen: set[int] = set()
    while stack:
        node, is_ready = stack.pop()
        if is_ready:
            nodes.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            if isinstance(node, View | Spread | Embed | Permute | Take | Join):
                stack.extend((part, False) for part in operands(node))
    return nodes


def _computed(expr: Expr, target: np.dtype[Any], source: Source) -> Array:
    """The rounded values of an operation, a sum or a constant."""
    sizes = {id(node): math.prod(node.shape) for node in walk(expr)}
    if max(sizes.values()) <= _SMALL or 0 in sizes.values():
        return round_to(evaluate(expr), target)
    known = _small_parts(expr, sizes)
    expr = regrouped(expr, known)
    if target.name != "float64":
        try:
            return _tried(expr, target, known, source)
        except NoBound:
            pass
    out = np.empty(expr.shape, target)
    axis = _row_axis(expr.shape)
    run = Run(expr, axis, InDoubleDouble(), known, source)
    for cut, value in _blocks(run, expr, axis):
        out[cut] = round_to(value, target)
    return out


def _small_parts(expr: Expr, sizes: dict[int, int]) -> Memo:
    """The values of what an expression is made of that is small. sizes: number of elements of each node, by id."""
    nodes = list(walk(expr))
    limit = max(_SMALL, min(_BLOCK, max(sizes.values()) // 16))
    peaks: dict[int, int] = {}
    for node in nodes:
        peaks[id(node)] = max([sizes[id(node)], *(peaks[id(part)] for part in operands(node))])
    known: Memo = {}
    for node in reversed(nodes):  # the largest parts first: what they are made of is known with them
        if peaks[id(node)] <= limit and id(node) not in known:
            evaluate(node, known)
    return known


def _row_axis(shape: Shape) -> int | None:
    """The axis to cut blocks along: the first, if it is long enough to be cut; else the longest."""
    if not shape:
        return None
    return 0 if shape[0] >= 16 else shape.index(max(shape))


def _blocks(run: Run[X], expr: Expr, axis: int | None) -> Iterator[tuple[tuple[slice, ...], X]]:
    """The values of an expression block by block, each with its place."""
    if axis is None:
        yield (), run.whole()
        return
    count = expr.shape[axis]
    largest = max(math.prod(node.shape) for node in walk(expr))
    rows = max(1, _BLOCK * count // largest)
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        yield (slice(None),) * axis + (slice(start, stop),), run.rows(start, stop)


def _tried(expr: Expr, target: np.dtype[Any], known: Memo, source: Source) -> Array:
    """The rounded values, by float64 where that is enough to know them. Raises NoBound where there is no bound."""
    out = np.empty(expr.shape, target)
    axis = _row_axis(expr.shape)
    run = Run(expr, axis, InBounds(), known, source)
    doubtful: list[Points] = []
    for cut, x in _blocks(run, expr, axis):
        out[cut], doubt = _first_try(x, target)
        places = np.flatnonzero(doubt) if doubt is not None else ()
        if len(places):
            at = list(np.unravel_index(places, x.value.shape))
            if axis is not None:
                at[axis] += cut[axis].start
            doubtful.append(np.asarray(np.ravel_multi_index(tuple(at), expr.shape) if at else places))
    if doubtful:
        points, flat = np.concatenate(doubtful), out.reshape(-1)
        step = max(1, _POINTS // points_each(expr, known))
        for start in range(0, len(points), step):
            some = points[start : start + step]
            flat[some] = round_to(values_at(expr, some, known, source), target)
    return out


def _first_try(x: Bounded, target: np.dtype[Any]) -> tuple[Array, Array | None]:
    """The numbers rounded, and where their error may matter (None: nowhere)."""
    is_bfloat = target.name == "bfloat16"
    if x.relative == 0.0 and x.is_relative and not is_bfloat:
        return x.value.astype(target), None  # exact, and numpy rounds once
    # The bounds themselves are rounded; and bfloat16 is reached through float32, so that a bound must be wide enough
    # for the first rounding not to hide on which side of a tie a number lies, also where float32 is subnormal.
    relative = x.relative + 4 * _UNIT + (2.0**-22 if is_bfloat else 0.0)
    if x.is_relative and not is_bfloat:
        low, high = (_narrowed(x.value * (1.0 + part), target) for part in (-relative, relative))
    else:
        error = np.abs(x.value) * relative + x.absolute * (1.0 + 2.0**-20) + (2.0**-147 if is_bfloat else 0.0)
        low, high = _narrowed(x.value - error, target), _narrowed(x.value + error, target)
    kind = f"u{target.itemsize}"
    doubt = low.view(kind) != high.view(kind)
    if is_bfloat and x.is_relative:
        doubt &= x.value != 0.0  # a zero without an absolute error is one
    return high, doubt


def _narrowed(values: F64, target: np.dtype[Any]) -> Array:
    return values.astype(np.float32).astype(target) if target.name == "bfloat16" else values.astype(target)
