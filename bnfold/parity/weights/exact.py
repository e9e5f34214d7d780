"""Exact arithmetic: what a folded tensor should be, to hundreds of bits, in Python's integers.

A number is an interval [low, high] * 2**exponent of two integers. Sums, differences and products of floats are
exact (low = high); quotients and square roots (`math.isqrt`) are enclosed to PRECISION bits, rounded outwards
(interval arithmetic: Moore, Kearfott and Cloud 2009, chapter 2). Nothing here shares code with the fold, whose
double-double arithmetic it is there to judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from bnfold.errors import ParityError

PRECISION = 320  # bits kept of a quotient or root: six times float64, so that cancellation leaves plenty
_EXACT_LIMIT = 1 << 14  # bits up to which a number that is known exactly stays so
TIE_SLACK = Fraction(1, 1 << 100)  # ulp by which an irrational value on a tie may pass for either neighbour


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: bits of significand (the hidden one counted), exponent of the least normal."""

    name: str
    bits: int
    least_exponent: int

    @property
    def smallest(self) -> float:
        """The smallest positive subnormal."""
        return math.ldexp(1.0, self.least_exponent - self.bits + 1)

    @property
    def unit_roundoff(self) -> float:
        """u: half the distance from 1 to the next number."""
        return math.ldexp(1.0, -self.bits)


# IEEE 754-2019, table 3.5; bfloat16 is float32 without the last 16 bits of significand.
FORMATS = {
    "float16": Format("float16", 11, -14),
    "bfloat16": Format("bfloat16", 8, -126),
    "float32": Format("float32", 24, -126),
    "float64": Format("float64", 53, -1022),
}


def format_of(dtype: np.dtype[Any]) -> Format:
    """The format of a numpy dtype. Raises ParityError for one that is no floating-point format of a fold."""
    if dtype.name not in FORMATS:
        raise ParityError(f"a folded tensor has dtype {dtype.name}; expected one of {', '.join(FORMATS)}")
    return FORMATS[dtype.name]


@dataclass(frozen=True, slots=True)
class Interval:
    """Every number between low * 2**exponent and high * 2**exponent; exact when low = high."""

    low: int
    high: int
    exponent: int

    @staticmethod
    def of(value: float) -> Interval:
        """A float, exactly. Raises ParityError when it is NaN or infinite."""
        if not math.isfinite(value):
            raise ParityError(f"a constant of the reference is {value}; a fold needs finite numbers")
        significand, exponent = math.frexp(value)
        whole = int(significand * 9007199254740992.0)  # 2**53: every float64 significand becomes an integer
        return Interval(whole, whole, exponent - 53)

    def __add__(self, other: Interval) -> Interval:
        shift = self.exponent - other.exponent
        if shift >= 0:
            return _trimmed((self.low << shift) + other.low, (self.high << shift) + other.high, other.exponent)
        return _trimmed(self.low + (other.low << -shift), self.high + (other.high << -shift), self.exponent)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low, self.exponent)

    def __sub__(self, other: Interval) -> Interval:
        return self + -other

    def __mul__(self, other: Interval) -> Interval:
        exponent = self.exponent + other.exponent
        if self.low == self.high and other.low == other.high:
            product = self.low * other.low
            return _trimmed(product, product, exponent)
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return _trimmed(min(ends), max(ends), exponent)

    def __truediv__(self, other: Interval) -> Interval:
        if other.low <= 0 <= other.high:
            raise ParityError("a constant of the reference is divided by zero; the norm has no finite scale")
        size = max(abs(self.low), abs(self.high)).bit_length()
        shift = max(0, PRECISION + max(abs(other.low), abs(other.high)).bit_length() - size)
        pairs = {(a << shift, b) for a in (self.low, self.high) for b in (other.low, other.high)}
        low = min(a // b for a, b in pairs)
        high = max(-(-a // b) for a, b in pairs)
        return _trimmed(low, high, self.exponent - other.exponent - shift)

    def sqrt(self) -> Interval:
        """The square root. Raises ParityError below zero."""
        if self.low < 0:
            raise ParityError("a variance plus eps of the reference is negative; the norm has no real scale")
        shift = max(0, 2 * PRECISION - self.high.bit_length())
        shift += (self.exponent - shift) % 2
        low, high = self.low << shift, self.high << shift
        root = math.isqrt(high)
        return Interval(math.isqrt(low), root + (root * root != high), (self.exponent - shift) // 2)

    def bounds(self) -> tuple[Fraction, Fraction]:
        """Both ends as fractions."""
        unit = Fraction(2) ** self.exponent
        return self.low * unit, self.high * unit

    def leading(self) -> tuple[float, float, bool]:
        """(hi, lo, sharp): hi + lo is the number to 2**-104 of its size, if sharp; hi is a float64 next to it.

        Not sharp: the interval is too wide, or the number is out of the range where float64 keeps its precision.
        """
        low, high, exponent = self.low << 1, self.high << 1, self.exponent - 1
        middle = (low + high) >> 1
        surplus = max(0, middle.bit_length() - PRECISION)
        if (high - low) << 110 > abs(middle) or not -800 < middle.bit_length() + exponent < 1000:
            return 0.0, 0.0, middle == low == high == 0
        first = float(middle >> surplus)
        rest = float((middle >> surplus) - int(first))
        return math.ldexp(first, exponent + surplus), math.ldexp(rest, exponent + surplus), True


def _trimmed(low: int, high: int, exponent: int) -> Interval:
    """Rounded outwards to PRECISION bits when it is longer and not exact."""
    size = max(abs(low), abs(high)).bit_length()
    if size <= PRECISION or (low == high and size <= _EXACT_LIMIT):
        return Interval(low, high, exponent)
    cut = size - PRECISION
    return Interval(low >> cut, -(-high >> cut), exponent + cut)


def gap(value: Fraction, form: Format, *, outwards: bool) -> Fraction:
    """The distance from a number of the format to the next one, away from zero or towards it."""
    exponent = max(_exponent(value), form.least_exponent)
    step = Fraction(2) ** (exponent - form.bits + 1)
    on_border = abs(value) == Fraction(2) ** exponent and exponent > form.least_exponent
    return step / 2 if on_border and not outwards else step


def _exponent(value: Fraction) -> int:
    """floor(log2(|value|)); far below every format for zero."""
    if value == 0:
        return -(1 << 20)
    guess = abs(value.numerator).bit_length() - value.denominator.bit_length()
    return guess if abs(value) >= Fraction(2) ** guess else guess - 1


def distance(truth: Interval, shipped: float, form: Format) -> tuple[float, bool]:
    """(ulps, nearest) of a shipped number against the exact one.

    ulps: the largest |shipped - exact| over the interval, in units of the last place of the exact value.
    nearest: no number of the format is closer than the shipped one (ties: either will do), up to TIE_SLACK.
    """
    if not math.isfinite(shipped):
        return math.inf, False
    low, high = truth.bounds()
    value = Fraction(shipped)
    ulp = gap((low + high) / 2, form, outwards=True)
    above = gap(value, form, outwards=value >= 0) / 2
    below = gap(value, form, outwards=value <= 0) / 2
    nearest = high - value <= above + TIE_SLACK * ulp and value - low <= below + TIE_SLACK * ulp
    try:
        ulps = float(max(high - value, value - low) / ulp)
    except OverflowError:
        ulps = math.inf
    return ulps, nearest
