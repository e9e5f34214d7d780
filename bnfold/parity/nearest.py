"""Is every element of a folded tensor the nearest float to its exact value, and how far is the worst one off?

Floating-point filters decide nearly all elements (as the adaptive predicates of Shewchuk, Discrete & Computational
Geometry 18, 1997): a float64 product with a rigorous error bound, then an error-free product (Dekker, Numerische
Mathematik 18, 1971) for what the first leaves open, then the exact intervals of `bnfold.parity.exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from bnfold.folding.expressions import Array
from bnfold.parity.exact import Format, Interval, distance, format_of

F64 = np.ndarray[Any, np.dtype[np.float64]]

_BLOCK = 1 << 20  # elements at a time; the working set stays in the cache
_EXPONENT = np.int64(0x7FF0000000000000)
_SPLITTER = 134217729.0  # 2**27 + 1: halves a 53-bit significand
# Between these the products below neither overflow nor lose their error term to underflow.
_TINY, _HUGE = 2.0**-900, 2.0**900
# Error of fl(hi * w) against (hi + lo) * w: half an ulp of the product, half an ulp of hi, both at most 2**-53.
_FIRST_ERROR = 2.0**-51
# Error of the second residual r = (p - s) + (e + lo * w): four roundings of r or of terms below 2**-52 |p|, and
# 2**-104 |p| for the truncation of the scale to hi + lo.
_SECOND_ERROR = (2.0**-50, 2.0**-101)


@dataclass(frozen=True)
class Distances:
    """How far a tensor is from the exact one. not_nearest: elements with a float closer to the exact value.

    worst_ulp: largest |shipped - exact| in units of the last place of the exact value, at `worst_index`.
    """

    elements: int
    not_nearest: int
    worst_ulp: float
    worst_index: tuple[int, ...]


def measure_vector(exact: Sequence[Interval], shipped: Array) -> Distances:
    """Compare a vector with exact values, element by element. exact, shipped: (C,)."""
    form = format_of(shipped.dtype)
    found = [distance(truth, float(value), form) for truth, value in zip(exact, shipped, strict=True)]
    ulps = [ulp for ulp, _ in found]
    worst = int(np.argmax(ulps)) if ulps else 0
    index = (worst,) if ulps else ()
    return Distances(len(found), sum(not nearest for _, nearest in found), max(ulps, default=0.0), index)


def measure_product(weight: Array, shipped: Array, scale: Sequence[Interval], channels: Array) -> Distances:
    """Compare `shipped` with `scale[channels] * weight`.

    weight, shipped: one shape and one dtype. channels: int64, (shape[0], 1) or shape[:2]: the output channel of each
    element by its first two indices. scale: (O,).
    """
    form = format_of(shipped.dtype)
    rows, columns = channels.shape
    view = (rows, columns, -1) if weight.size else (rows, columns, 0)
    source, target = weight.reshape(view), shipped.reshape(view)
    leading = [value.leading() for value in scale]
    high = np.array([part[0] for part in leading], np.float64)
    low = np.array([part[1] for part in leading], np.float64)
    sharp = np.array([part[2] for part in leading], np.bool_)
    step = max(1, _BLOCK // max(1, columns * source.shape[2]))
    count, worst, where = 0, -1.0, 0
    for start in range(0, rows, step):
        part = channels[start : start + step]
        shape = source[start : start + step].shape
        of = np.broadcast_to(part[:, :, None], shape).reshape(-1)
        block = _Block(
            source[start : start + step].reshape(-1), target[start : start + step].reshape(-1), of, scale, form
        )
        wrong, ulps = block.judge(high, low, sharp)
        count += wrong
        if ulps.size and (peak := float(ulps.max())) > worst:
            worst, where = peak, start * columns * source.shape[2] + int(ulps.argmax())
    if not weight.size:
        return Distances(0, 0, 0.0, ())
    index = tuple(int(i) for i in np.unravel_index(where, weight.shape))
    row, column, _ = np.unravel_index(where, source.shape)
    truth = scale[int(channels[row, column])] * Interval.of(float(weight[index]))
    return Distances(weight.size, count, distance(truth, float(shipped[index]), form)[0], index)


@dataclass(frozen=True)
class _Block:
    """Some elements, flat: weight and shipped in their dtype, the channel of each, all scales."""

    weight: Array
    shipped: Array
    channels: Array
    scale: Sequence[Interval]
    form: Format

    def judge(self, high: F64, low: F64, sharp: Array) -> tuple[int, F64]:
        """(number not nearest, ulps of each element)."""
        with np.errstate(all="ignore"):
            w, s = self.weight.astype(np.float64), self.shipped.astype(np.float64)
            product = high[self.channels] * w
            rest = np.abs(product - s)
            ulps = rest / _ulp(product, self.form)
            outer = _ulp(s, self.form)
            half = np.where(_is_power(s), outer * 0.25, outer * 0.5)
            certain = rest + _FIRST_ERROR * np.abs(product) <= half
            certain &= sharp[self.channels] & _in_range(product, w)
        broken = ~np.isfinite(s)
        ulps[broken] = np.inf
        left = np.flatnonzero(~certain & ~broken)
        wrong = int(broken.sum())
        if left.size:
            more, ulps[left] = self._judge_left(left, w[left], s[left], high, low, sharp)
            wrong += more
        return wrong, ulps

    def _judge_left(self, left: Array, w: F64, s: F64, high: F64, low: F64, sharp: Array) -> tuple[int, F64]:
        of = self.channels[left]
        with np.errstate(all="ignore"):
            product, error = _two_product(high[of], w)
            rest = (product - s) + (error + low[of] * w)
            size = np.abs(rest)
            bound = _SECOND_ERROR[0] * size + _SECOND_ERROR[1] * np.abs(product)
            half = 0.5 * _gap(s, rest, self.form)
            ulps = size / _ulp(product, self.form)
            usable = sharp[of] & _in_range(product, w) & np.isfinite(error)
            near = usable & (size + bound <= half)
            far = usable & (size - bound > half)
        wrong = int(far.sum())
        for at in np.flatnonzero(~(near | far)):
            truth = self.scale[int(of[at])] * Interval.of(float(w[at]))
            ulps[at], nearest = distance(truth, float(s[at]), self.form)
            wrong += not nearest
        return wrong, cast(F64, ulps)


def _in_range(product: F64, w: F64) -> Array:
    size = np.abs(product)
    return cast(Array, ((size > _TINY) & (size < _HUGE)) | (w == 0.0))


def _floor_power(value: F64) -> F64:
    """The largest power of two below or equal to |value|; 0 for subnormals of float64 and zero."""
    return (np.abs(value).view(np.int64) & _EXPONENT).view(np.float64)


def _is_power(value: F64) -> Array:
    return cast(Array, np.abs(value) == _floor_power(value))


def _ulp(value: F64, form: Format) -> F64:
    """The spacing of the format at |value|, outwards."""
    return cast(F64, np.maximum(_floor_power(value) * 2.0 ** (1 - form.bits), form.smallest))


def _gap(value: F64, towards: F64, form: Format) -> F64:
    """The distance from a number of the format to the next one on the side of the sign of `towards`."""
    outer = _ulp(value, form)
    inwards = (np.sign(towards) == -np.sign(value)) & _is_power(value) & (outer > form.smallest)
    return cast(F64, np.where(inwards, outer * 0.5, outer))


def _two_product(a: F64, b: F64) -> tuple[F64, F64]:
    """a * b as a rounded product and its exact error."""
    product = a * b
    a_high = (t := _SPLITTER * a) - (t - a)
    b_high = (t := _SPLITTER * b) - (t - b)
    a_low, b_low = a - a_high, b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error
