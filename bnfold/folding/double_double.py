"""Double-double arithmetic on arrays.

A double-double number is an unevaluated sum hi + lo of two float64 with |lo| <= ulp(hi)/2: about 106 significant
bits. The error-free transformations are those of Dekker (Numerische Mathematik 18, 1971) and Knuth (TAOCP 2,
4.2.2); the compound operations follow Hida, Li and Bailey (ARITH-15, 2001).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.folding.expressions import Array

F64 = np.ndarray[Any, np.dtype[np.float64]]

_SPLITTER = 134217729.0  # 2**27 + 1, Veltkamp's constant for 53 bits
_HUGE, _TINY = 2.0**990, 2.0**-960  # beyond these splitting overflows, or the error of a product underflows


@dataclass(frozen=True)
class DoubleDouble:
    """An array of numbers hi + lo, both float64 of one shape."""

    hi: F64
    lo: F64

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return tuple(self.hi.shape)

    def reshape(self, shape: tuple[int, ...]) -> DoubleDouble:
        """The same numbers under another shape."""
        return DoubleDouble(self.hi.reshape(shape), self.lo.reshape(shape))

    def is_finite(self) -> bool:
        """True when every number is finite."""
        return bool(np.isfinite(self.hi).all() and np.isfinite(self.lo).all())


def exact(values: Array | float) -> DoubleDouble:
    """Numbers of at most 53 significant bits, as they are. values: any shape, float16 to float64 or bfloat16."""
    hi = np.asarray(values).astype(np.float64)
    return DoubleDouble(hi, np.zeros_like(hi))


def _quick_sum(a: F64, b: F64) -> DoubleDouble:
    s = a + b
    return DoubleDouble(s, np.where(np.isfinite(s), b - (s - a), 0.0))


def _two_sum(a: F64, b: F64) -> DoubleDouble:
    s = a + b
    t = s - a
    return DoubleDouble(s, (a - (s - t)) + (b - t))


def _split(a: F64) -> tuple[F64, F64]:
    t = _SPLITTER * a
    high = t - (t - a)
    return high, a - high


def _two_product(a: F64, b: F64) -> DoubleDouble:
    p = a * b
    if _is_ordinary(a, b, p):
        return DoubleDouble(p, _product_error(a, b, p))
    # The same on significands in [0.5, 1), where splitting cannot overflow nor the error underflow.
    (a, a_exponent), (b, b_exponent) = np.frexp(a), np.frexp(b)
    exponent = a_exponent + b_exponent
    product = a * b
    error = _product_error(a, b, product) + (product - np.ldexp(p, -exponent))
    return DoubleDouble(p, np.where(np.isfinite(p), np.ldexp(error, exponent), 0.0))


def _product_error(a: F64, b: F64, p: F64) -> F64:
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    return ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def _is_ordinary(a: F64, b: F64, p: F64) -> bool:
    largest = max(float(np.max(np.abs(x), initial=0.0)) for x in (a, b))
    smallest = float(np.min(np.abs(p), initial=1.0, where=p != 0.0))
    return largest <= _HUGE and smallest >= _TINY


def add(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """x + y."""
    s = _two_sum(x.hi, y.hi)
    t = _two_sum(x.lo, y.lo)
    first = _quick_sum(s.hi, s.lo + t.hi)
    return _quick_sum(first.hi, first.lo + t.lo)


def negative(x: DoubleDouble) -> DoubleDouble:
    """-x."""
    return DoubleDouble(-x.hi, -x.lo)


def sub(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """x - y."""
    return add(x, negative(y))


def mul(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """x * y."""
    p = _two_product(x.hi, y.hi)
    return _quick_sum(p.hi, p.lo + (x.hi * y.lo + x.lo * y.hi))


def div(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """x / y, by three steps of long division."""
    first = x.hi / y.hi
    rest = sub(x, mul(y, exact(first)))
    second = rest.hi / y.hi
    rest = sub(rest, mul(y, exact(second)))
    third = rest.hi / y.hi
    return add(_quick_sum(first, second), exact(third))


def sqrt(x: DoubleDouble) -> DoubleDouble:
    """The square root, by two steps of Newton's method from the float64 root; NaN below zero."""
    small = x.hi < _TINY  # there the square of the root would lose bits below the range
    x = DoubleDouble(*(np.where(small, part * 2.0**200, part) for part in (x.hi, x.lo)))
    root = np.sqrt(x.hi)
    rest = sub(x, _two_product(root, root))
    step = np.divide(rest.hi, 2.0 * root, out=np.zeros_like(root), where=root != 0.0)
    refined = _quick_sum(root, step)
    rest = sub(x, mul(refined, refined))
    step = np.divide(rest.hi, 2.0 * root, out=np.zeros_like(root), where=root != 0.0)
    found = add(refined, exact(step))
    return DoubleDouble(*(np.where(small, part * 2.0**-100, part) for part in (found.hi, found.lo)))


def total(x: DoubleDouble, axes: tuple[int, ...]) -> DoubleDouble:
    """The sum over some axes, which stay with size 1, by halves: the error grows with the logarithm of the count."""
    rest = tuple(axis for axis in range(x.hi.ndim) if axis not in axes)
    sizes = tuple(x.hi.shape[axis] for axis in rest)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.hi.shape))
    count = math.prod(x.hi.shape[axis] for axis in axes)
    if count == 0:
        return exact(np.zeros(kept))
    hi, lo = (part.transpose(*axes, *rest).reshape(count, *sizes) for part in (x.hi, x.lo))
    while count > 1:
        half = count // 2
        left, right = (DoubleDouble(hi[part], lo[part]) for part in (slice(0, half), slice(half, 2 * half)))
        summed = add(left, right)
        hi, lo = (np.concatenate((new, old[2 * half :])) for new, old in ((summed.hi, hi), (summed.lo, lo)))
        count = len(hi)
    return DoubleDouble(hi[0].reshape(kept), lo[0].reshape(kept))
