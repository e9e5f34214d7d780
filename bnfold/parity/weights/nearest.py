"""Is every element of a folded tensor the nearest float to its exact value, and how far is the worst one off?

Floating-point filters decide nearly all elements (as the adaptive predicates of Shewchuk, Discrete & Computational
Geometry 18, 1997): float64 with a rigorous error bound, then 106 bits with one (`enclosing.py`), then exact integers
for what both leave open (`pointwise.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from bnfold.folding.expressions import Array, Expr, Shape
from bnfold.parity.weights.balls import Ball, two_sum
from bnfold.parity.weights.enclosing import Rows, enclose, product_rows, slices
from bnfold.parity.weights.exact import Format, distance, format_of
from bnfold.parity.weights.pointwise import Points

F64 = np.ndarray[Any, np.dtype[np.float64]]

_FEW = 16  # elements of a block that are cheaper to compute exactly than all of it in 106 bits
_EXPONENT = np.int64(0x7FF0000000000000)
_UP = 1 + 2.0**-48  # for the roundings of a comparison


@dataclass(frozen=True)
class Distances:
    """How far a tensor is from the exact one. not_nearest: elements with a float closer to the exact value.

    worst_ulp: largest |shipped - exact| in units of the last place of the exact value, at `worst_index`.
    """

    elements: int
    not_nearest: int
    worst_ulp: float
    worst_index: tuple[int, ...]


def measure(expr: Expr, shipped: Array, *, wrong: Array | None = None) -> Distances:
    """Compare a tensor with the expression that it should be, rounded once. One shape.

    wrong: bool, of the same shape, C-contiguous; set True where another float is closer to the exact value.
    Raises ParityError when the expression has no finite, real value in some place.
    """
    form = format_of(shipped.dtype)
    if not shipped.size:
        return Distances(0, 0, 0.0, ())
    points = Points(expr)
    shape = shipped.shape or (1,)
    values = shipped.reshape(shape)
    rows = product_rows(expr, shape) or _Whole(expr, shape).rows
    count, worst, where = 0, -1.0, 0
    for start, stop in slices(shape):
        block = _Block(values[start:stop], start, rows, points, expr.shape, form)
        far, ulps = block.judge()
        count += int(far.sum())
        if wrong is not None:
            wrong.reshape(shape)[start:stop] = far.reshape(values[start:stop].shape)
        if (peak := float(ulps.max())) > worst:
            worst, where = peak, start * math.prod(shape[1:]) + int(ulps.argmax())
    index = _at(where, expr.shape)
    ulps_there, _ = distance(points.at(index), float(shipped[index]), form)
    return Distances(shipped.size, count, ulps_there, index)


@dataclass
class _Whole:
    """An expression that is enclosed as a whole, each kind of ball once."""

    expr: Expr
    shape: Shape
    found: dict[bool, Ball] = field(default_factory=dict)

    def rows(self, start: int, stop: int, wide: bool) -> Ball:
        if wide not in self.found:
            self.found[wide] = enclose(self.expr, wide=wide).each(lambda part: part.reshape(self.shape))
        return self.found[wide].each(lambda part: part[start:stop])


@dataclass(frozen=True)
class _Block:
    """Some rows of a tensor, the first of them at `start`. shape: of the whole tensor, as the expression has it."""

    shipped: Array
    start: int
    rows: Rows
    points: Points
    shape: Shape
    form: Format

    def judge(self) -> tuple[Array, F64]:
        """(which are not nearest, ulps of each element)."""
        s = self.shipped.reshape(-1).astype(np.float64)
        is_wide = self.form.bits > 24
        ulps = np.zeros(s.shape)
        left = np.arange(0)
        wrong = np.zeros(s.shape, np.bool_)
        for wide in (True,) if is_wide else (False, True):
            ball = self._ball(wide)
            if wide == is_wide:
                near, far, ulps = _judged(ball, s, self.form)
                left = np.flatnonzero(~(near | far))
                wrong = far
            elif left.size > _FEW:
                near, far, ulps[left] = _judged(ball.each(lambda part: part[left]), s[left], self.form)  # noqa: B023
                wrong[left] = far
                left = left[~(near | far)]
            if left.size <= _FEW:
                break
        for at in left:
            index = _at(self.start * (s.size // len(self.shipped)) + int(at), self.shape)
            ulps[at], nearest = distance(self.points.at(index), float(s[at]), self.form)
            wrong[at] = not nearest
        return wrong, ulps

    def _ball(self, wide: bool) -> Ball:
        ball = self.rows(self.start, self.start + len(self.shipped), wide).spread(self.shipped.shape)
        return ball.each(lambda part: part.reshape(-1))


def _judged(ball: Ball, s: F64, form: Format) -> tuple[Array, Array, F64]:
    """(certainly nearest, certainly not, ulps) of shipped values, flat, against balls."""
    with np.errstate(all="ignore"):
        ulp = _ulp(ball.hi, form)
        outer = _ulp(s, form)
        rest = ball.hi - s
        if ball.lo is None:  # the quick way first
            ulps = np.abs(rest) / ulp
            bound = np.abs(rest) + (0.0 if ball.rad is None else ball.rad)
            near = bound * _UP <= np.where(_is_power(s), outer * 0.25, outer * 0.5)
            far = np.zeros(s.shape, np.bool_)
            left = np.flatnonzero(~near)
            part = ball.each(lambda part: part[left])
            near[left], far[left], ulps[left] = _closely(part, s[left], form)
        else:
            near, far, ulps = _closely(ball, s, form)
    broken = ~np.isfinite(s)
    ulps[broken] = np.inf
    return near & ~broken, far | broken, ulps


def _closely(ball: Ball, s: F64, form: Format) -> tuple[Array, Array, F64]:
    """As `_judged`, with every error accounted for, so that also an exact tie is known to be one."""
    rest, error = two_sum(ball.hi, -s)
    error, lost = two_sum(error, np.zeros(()) if ball.lo is None else ball.lo)
    rest, more = two_sum(rest, error)
    bound = np.abs(lost) + np.abs(more) + (0.0 if ball.rad is None else ball.rad)
    size, is_exact = np.abs(rest), bound == 0.0
    outer = _ulp(s, form)
    inner = np.where(_is_power(s) & (outer > form.smallest), outer * 0.5, outer)
    gap = np.where(size > bound * _UP, np.where(np.sign(rest) == -np.sign(s), inner, outer), 0.0)
    low, high = 0.5 * np.where(gap == 0.0, inner, gap), 0.5 * np.where(gap == 0.0, outer, gap)
    near = np.where(is_exact, size <= low, (size + bound) * _UP <= low)
    far = np.where(is_exact, size > high, size - bound * _UP > high * _UP)
    return near, far, size / _ulp(ball.hi, form)


def _at(place: int, shape: Shape) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(place, shape)) if shape else ()


def _floor_power(value: F64) -> F64:
    """The largest power of two below or equal to |value|; 0 for subnormals of float64 and zero."""
    return (np.abs(value).view(np.int64) & _EXPONENT).view(np.float64)


def _is_power(value: F64) -> Array:
    return cast(Array, np.abs(value) == _floor_power(value))


def _ulp(value: F64, form: Format) -> F64:
    """The spacing of the format at |value|, outwards."""
    return cast(F64, np.maximum(_floor_power(value) * 2.0 ** (1 - form.bits), form.smallest))
