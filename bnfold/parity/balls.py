"""Expressions over whole tensors in floating point, each number with a rigorous bound on its error.

A ball is every number within `rad` of `hi + lo`. Narrow balls have lo = 0: one float64 operation and a bound on its
rounding. Wide balls have 106 bits, for tensors in float64 and for what narrow ones leave open. Errors are taken from
error-free transformations where these are cheap (Knuth, TAOCP 2, 4.2.2; Dekker, Numerische Mathematik 18, 1971), or
from the residual of the result; radii are rounded outwards (ball arithmetic: van der Hoeven, 2009). Where anything
overflows, the radius is infinite or NaN, and the ball says nothing. This module shares no code with the fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    operands,
    walk,
)

F64 = np.ndarray[Any, np.dtype[np.float64]]

_U = 2.0**-53 * (1 + 2.0**-40)
_UP = 1 + 2.0**-48  # on a radius, for the few roundings of its own computing
_SPLITTER = 134217729.0  # 2**27 + 1: halves a 53-bit significand
_SMALL, _LOST = 2.0**-900, 2.0**-1060  # a product below the first may lose less than the second to underflow
_WIDE_PRODUCT = 2.0**-101  # of the product: lo * lo, and the roundings of three terms below 2**-52 of it


@dataclass(frozen=True)
class Ball:
    """Balls of one shape: hi + lo, give or take rad. lo: None where it is zero; rad: None where hi + lo is exact."""

    hi: F64
    lo: F64 | None = None
    rad: F64 | None = None

    def each(self, change: Callable[[F64], F64]) -> Ball:
        """A change of layout made to every part."""
        lo, rad = (None if part is None else change(part) for part in (self.lo, self.rad))
        return Ball(change(self.hi), lo, rad)

    def spread(self, shape: Shape) -> Ball:
        """The ball broadcast to a shape."""
        return self.each(lambda part: np.broadcast_to(part, shape))


def enclose(expr: Expr, *, wide: bool) -> Ball:
    """The values of an expression over constants, enclosed. wide: to about 104 bits instead of 52.

    Parts are let go as soon as nobody needs them any more.
    """
    order = list(walk(expr))
    last = {id(part): at for at, node in enumerate(order) for part in operands(node)}
    done: dict[int, list[int]] = {}
    for part, at in last.items():
        done.setdefault(at, []).append(part)
    found: dict[int, Ball] = {}
    with np.errstate(all="ignore"):
        for at, node in enumerate(order):
            found[id(node)] = _node(node, [found[id(part)] for part in operands(node)], wide)
            for part in done.get(at, ()):
                found.pop(part, None)
    return found[id(expr)]


def multiply(x: Ball, y: Ball, *, wide: bool) -> Ball:
    """x * y, with broadcasting."""
    with np.errstate(all="ignore"):
        return _mul(x, y, wide)


def _node(node: Expr, of: list[Ball], wide: bool) -> Ball:
    match node:
        case Scalar(value):
            return Ball(np.asarray(value, np.float64))
        case Leaf(tensor):
            return Ball(np.asarray(tensor.load()).astype(np.float64))
        case Given(values, shape):
            return Ball(np.asarray(values, np.float64).reshape(shape))
        case View(_, shape):
            return of[0].each(lambda part: part.reshape(shape))
        case Permute(_, perm):
            return of[0].each(lambda part: part.transpose(perm))
        case Spread(_, shape):
            return of[0].spread(shape)
        case Take(_, axis, indices):
            return of[0].each(lambda part: part.take(indices, axis=axis))
        case Embed(_, shape, start, step):
            return of[0].each(lambda part: _embedded(part, shape, start, step))
        case Join(_, axis):
            return _joined(of, axis)
        case Total(_, axes):
            return _total(of[0], axes, wide)
        case Op("sqrt", _):
            return _sqrt(of[0], wide)
        case Op("add", _):
            return _add(of[0], of[1], wide)
        case Op("sub", _):
            return _add(of[0], _minus(of[1]), wide)
        case Op("mul", _):
            return _mul(of[0], of[1], wide)
        case Op():
            return _div(of[0], of[1], wide)


def _embedded(part: F64, shape: Shape, start: Sequence[int], step: Sequence[int]) -> F64:
    full = np.zeros(shape)
    full[tuple(slice(a, a + (n - 1) * k + 1, k) for a, n, k in zip(start, part.shape, step, strict=True))] = part
    return full


def _joined(of: Sequence[Ball], axis: int) -> Ball:
    def joined(parts: Sequence[F64 | None]) -> F64 | None:
        if all(part is None for part in parts):
            return None
        full = [np.zeros(ball.hi.shape) if part is None else part for ball, part in zip(of, parts, strict=True)]
        return np.concatenate(full, axis)

    hi = np.concatenate([ball.hi for ball in of], axis)
    return Ball(hi, joined([ball.lo for ball in of]), joined([ball.rad for ball in of]))


def _minus(x: Ball) -> Ball:
    return Ball(-x.hi, None if x.lo is None else -x.lo, x.rad)


def _sum(*parts: F64 | None) -> F64:
    """The sum of radii, rounded outwards."""
    given = [part for part in parts if part is not None]
    total = given[0]
    for part in given[1:]:
        total = total + part
    return np.asarray(total * _UP) if len(given) > 1 else total


def two_sum(a: F64, b: F64) -> tuple[F64, F64]:
    """a + b as a rounded sum and its exact error; NaN where it overflows."""
    total = a + b
    t = total - a
    return total, (a - (total - t)) + (b - t)


def _quick_sum(a: F64, b: F64) -> tuple[F64, F64]:
    """As two_sum, for |a| >= |b| or a = 0."""
    total = a + b
    return total, b - (total - a)


def _two_product(a: F64, b: F64) -> tuple[F64, F64]:
    """a * b as a rounded product and its exact error; NaN where it overflows, and less than _LOST off below _SMALL."""
    product = a * b
    a_high = (t := _SPLITTER * a) - (t - a)
    b_high = (t := _SPLITTER * b) - (t - b)
    a_low, b_low = a - a_high, b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _add(x: Ball, y: Ball, wide: bool) -> Ball:
    total, error = two_sum(x.hi, y.hi)
    if not wide:
        return Ball(total, None, _sum(np.abs(error), x.rad, y.rad))
    if x.lo is None and y.lo is None:
        return Ball(total, error, _sum(np.abs(error) * 0.0, x.rad, y.rad))  # NaN where the error is
    low, lost = two_sum(_low(x), _low(y))
    middle, more = two_sum(error, low)
    hi, lo = two_sum(total, middle)
    return Ball(hi, lo, _sum(np.abs(more) + np.abs(lost) + np.abs(lo) * 0.0, x.rad, y.rad))


def _low(x: Ball) -> F64:
    return np.zeros(()) if x.lo is None else x.lo


def _mul(x: Ball, y: Ball, wide: bool) -> Ball:
    if not wide:
        product = x.hi * y.hi
        own = np.abs(product)
        own *= _U
        return Ball(product, None, _sum(own, _lost(product, x, y), *_carried(x, y)))
    product, lo = _two_product(x.hi, y.hi)
    own = np.abs(lo) * 0.0
    if x.lo is not None or y.lo is not None:
        product, lo = _quick_sum(product, lo + (x.hi * _low(y) + _low(x) * y.hi))
        own = own + _WIDE_PRODUCT * np.abs(product)
    elif x.rad is not None or y.rad is not None:
        own = own + _WIDE_PRODUCT * np.abs(product)  # far more than underflow takes from what is carried
    return Ball(product, lo, _sum(own, _lost(product, x, y), *_carried(x, y)))


def _lost(product: F64, x: Ball, y: Ball) -> F64 | None:
    """What underflow may take from a product; nothing where a factor is zero."""
    small = np.abs(product) < _SMALL
    if not small.any():
        return None
    return np.where(small & ~_is_zero(x) & ~_is_zero(y), _LOST, 0.0)


def _is_zero(x: Ball) -> Array:
    parts = [part == 0.0 for part in (x.hi, x.lo, x.rad) if part is not None]
    return np.asarray(np.logical_and.reduce(parts))


def _carried(x: Ball, y: Ball) -> tuple[F64 | None, ...]:
    """The errors of two factors in their product."""
    one = None if x.rad is None else x.rad * _size(y)
    two = None if y.rad is None else y.rad * _size(x)
    both = None if x.rad is None or y.rad is None else x.rad * y.rad
    return one, two, both


def _size(x: Ball) -> F64:
    """|hi + lo|, or a little more."""
    return np.abs(x.hi) if x.lo is None else (np.abs(x.hi) + np.abs(x.lo)) * _UP


def _div(x: Ball, y: Ball, wide: bool) -> Ball:
    """The quotient q, and its distance from the truth by the residual: |x/y - q| = |x - q*y| / |y|."""
    found = Ball(x.hi / y.hi)
    if wide:
        rest = _add(x, _minus(_mul(found, y, True)), True)
        found = Ball(*_quick_sum(found.hi, rest.hi / y.hi))
    missed = _missed(_add(x, _minus(_mul(found, y, True)), True))
    least = np.abs(y.hi) * (1 - 2.0**-48)
    for part in (y.lo, y.rad):
        least = least if part is None else least - np.abs(part)
    return Ball(found.hi, found.lo, _over(missed, least))


def _sqrt(x: Ball, wide: bool) -> Ball:
    """The root r, and its distance from the truth by the residual: |sqrt(x) - r| <= |x - r*r| / r."""
    found = Ball(np.sqrt(x.hi))
    if wide:
        rest = _add(x, _minus(_mul(found, found, True)), True)
        step = np.where(found.hi == 0.0, 0.0, rest.hi / (2 * found.hi))
        found = Ball(*_quick_sum(found.hi, step))
    missed = _missed(_add(x, _minus(_mul(found, found, True)), True))
    least = found.hi * (1 - 2.0**-48)
    may_be_negative = np.zeros(()) if x.rad is None else np.where(x.hi < x.rad * 2, np.inf, 0.0)
    return Ball(found.hi, found.lo, np.where(missed == 0.0, 0.0, _over(missed, least)) + may_be_negative)


def _missed(rest: Ball) -> F64:
    """The largest size of what is in a ball."""
    return _sum(_size(rest), rest.rad)


def _over(missed: F64, least: F64) -> F64:
    """missed / least, rounded outwards; infinite where least may be zero."""
    quotient = missed / np.where(least > 0, least, 1.0) * _UP
    return np.where(least > 0, quotient + np.where(missed > 0, 2.0**-1074, 0.0), np.inf) + missed * 0.0


def _total(x: Ball, axes: Sequence[int], wide: bool) -> Ball:
    """The sum over some axes, by halves."""
    rest = tuple(axis for axis in range(x.hi.ndim) if axis not in axes)
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.hi.shape))
    if 0 in x.hi.shape:
        return Ball(np.zeros(shape))
    ball = x.each(lambda part: part.transpose(*axes, *rest).reshape(-1, *(part.shape[axis] for axis in rest)))
    while (count := ball.hi.shape[0]) > 1:
        half = count // 2
        added = _add(_slices(ball, 0, half), _slices(ball, half, 2 * half), wide)
        ball = _joined((added, _slices(ball, 2 * half, count)), 0) if count % 2 else added
    return ball.each(lambda part: part[0].reshape(shape))


def _slices(x: Ball, begin: int, end: int) -> Ball:
    return x.each(lambda part: part[begin:end])
