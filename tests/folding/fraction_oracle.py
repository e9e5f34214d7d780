"""Rounding, roots and expressions in exact rational arithmetic: the oracle of double-double, slow and plain."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np

from bnfold.folding.expressions import Embed, Expr, Given, Join, Leaf, Op, Permute, Scalar, Spread, Take, Total, View

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


def fractions_of(expr: Expr) -> Any:
    """The value of an expression element by element, as an object array of fractions; roots good to 400 bits."""
    match expr:
        case Scalar(value):
            return fractions(value)
        case Leaf(tensor):
            return fractions(tensor.load().astype(np.float64))
        case Given(values, shape):
            return fractions(np.array(values).reshape(shape))
        case View(of, shape):
            return fractions_of(of).reshape(shape)
        case Permute(of, perm):
            return np.transpose(fractions_of(of), perm)
        case Spread(of, shape):
            return np.broadcast_to(fractions_of(of), shape)
        case Take(of, axis, indices):
            return np.take(fractions_of(of), indices, axis)
        case Join(parts, axis):
            return np.concatenate([fractions_of(part) for part in parts], axis)
        case Total(of, axes):
            return np.add.reduce(fractions_of(of), axes, keepdims=True)
        case Embed(of, shape, start, step):
            inner, full = fractions_of(of), fractions(np.zeros(shape))
            for index in np.ndindex(*inner.shape):
                full[tuple(a + i * k for a, i, k in zip(start, index, step, strict=True))] = inner[index]
            return full
        case Op("sqrt", (of,)):
            return np.vectorize(root, otypes=[object])(fractions_of(of))
        case Op(kind, (left, right)):
            x, y = fractions_of(left), fractions_of(right)
            return np.asarray({"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[kind](x, y))
    raise AssertionError(expr)


def fractions(values: Any) -> Any:
    """Finite float64 numbers as an object array of fractions."""
    array = np.asarray(values, np.float64)
    found = np.empty(array.shape, object)
    for index in np.ndindex(*array.shape):
        found[index] = Fraction(float(array[index]))
    return found


def nearest_of(exact: Any, name: str) -> Any:
    """Fractions rounded to a format, as float64."""
    return np.array([nearest(value, name) for value in np.asarray(exact, object).reshape(-1)]).reshape(exact.shape)
