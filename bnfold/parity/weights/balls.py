"""Arrays in floating point, each number with a rigorous bound on its error.

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

from bnfold.folding.expressions import Array, Shape

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


def joined(of: Sequence[Ball], axis: int) -> Ball:
    """Balls behind one another along an axis."""

    def parts_of(parts: Sequence[F64 | None]) -> F64 | None:
        if all(part is None for part in parts):
            return None
        full = [np.zeros(ball.hi.shape) if part is None else part for ball, part in zip(of, parts, strict=True)]
        return np.concatenate(full, axis)

    hi = np.concatenate([ball.hi for ball in of], axis)
    return Ball(hi, parts_of([ball.lo for ball in of]), parts_of([ball.rad for ball in of]))


def minus(x: Ball) -> Ball:
    """-x."""
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


def add(x: Ball, y: Ball, wide: bool) -> Ball:
    """x + y."""
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


def mul(x: Ball, y: Ball, wide: bool) -> Ball:
    """x * y."""
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


def div(x: Ball, y: Ball, wide: bool) -> Ball:
    """The quotient q, and its distance from the truth by the residual: |x/y - q| = |x - q*y| / |y|."""
    found = Ball(x.hi / y.hi)
    if wide:
        rest = add(x, minus(mul(found, y, True)), True)
        found = Ball(*_quick_sum(found.hi, rest.hi / y.hi))
    missed = _missed(add(x, minus(mul(found, y, True)), True))
    least = np.abs(y.hi) * (1 - 2.0**-48)
    for part in (y.lo, y.rad):
        least = least if part is None else least - np.abs(part)
    return Ball(found.hi, found.lo, _over(missed, least))


def sqrt(x: Ball, wide: bool) -> Ball:
    """The root r, and its distance from the truth by the residual: |sqrt(x) - r| <= |x - r*r| / r."""
    found = Ball(np.sqrt(x.hi))
    if wide:
        rest = add(x, minus(mul(found, found, True)), True)
        step = np.where(found.hi == 0.0, 0.0, rest.hi / (2 * found.hi))
        found = Ball(*_quick_sum(found.hi, step))
    missed = _missed(add(x, minus(mul(found, found, True)), True))
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


def total(x: Ball, axes: Sequence[int], wide: bool) -> Ball:
    """The sum over some axes, by halves."""
    rest = tuple(axis for axis in range(x.hi.ndim) if axis not in axes)
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.hi.shape))
    if 0 in x.hi.shape:
        return Ball(np.zeros(shape))
    ball = x.each(lambda part: part.transpose(*axes, *rest).reshape(-1, *(part.shape[axis] for axis in rest)))
    while (count := ball.hi.shape[0]) > 1:
        half = count // 2
        added = add(_slices(ball, 0, half), _slices(ball, half, 2 * half), wide)
        ball = joined((added, _slices(ball, 2 * half, count)), 0) if count % 2 else added
    return ball.each(lambda part: part[0].reshape(shape))


def _slices(x: Ball, begin: int, end: int) -> Ball:
    return x.each(lambda part: part[begin:end])
