"""Rounding and roots in exact rational arithmetic: the oracle of the double-double arithmetic, slow and plain."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
# Bits of significand, exponent of the smallest normal number, exponent of the largest (IEEE 754-2019, table 3.5).
FORMATS = {
    "float16": (11, -14, 15),
    "bfloat16": (8, -126, 127),
    "float32": (24, -126, 127),
    "float64": (53, -1022, 1023),
}


def spacing(value: Fraction, name: str) -> Fraction:
    """The distance between the two floats around a value (one ulp)."""
    bits, least, _ = FORMATS[name]
    exponent = least
    if value:
        exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
        while abs(value) < Fraction(2) ** exponent:
            exponent -= 1
        while abs(value) >= Fraction(2) ** (exponent + 1):
            exponent += 1
    return Fraction(2) ** (max(exponent, least) - bits + 1)


def nearest(value: Fraction, name: str) -> float:
    """The float of a format that is nearest to an exact value, ties to the even significand; inf beyond the range."""
    unit = spacing(value, name)
    steps = value / unit
    low = math.floor(steps)
    rest = steps - low
    whole = low + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1))
    bits, _, most = FORMATS[name]
    rounded = whole * unit
    if abs(rounded) > (2 - Fraction(2) ** (1 - bits)) * Fraction(2) ** most:
        return math.copysign(math.inf, rounded)
    return float(rounded)


def smallest(name: str) -> Fraction:
    """The smallest positive number of a format, a subnormal."""
    bits, least, _ = FORMATS[name]
    return Fraction(2) ** (least - bits + 1)


def root(value: Fraction, bits: int = 400) -> Fraction:
    """The square root, good to about `bits` bits."""
    shift = bits * 2 + 2 * value.denominator.bit_length()
    return Fraction(math.isqrt((value.numerator << shift) // value.denominator), 1 << (shift // 2))
