"""float64 arithmetic that knows how far off it may be: the quick first try of rounding large tensors.

A running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 3.3 and 4.2): each
number comes with a bound on its distance from the value that double-double arithmetic finds, as a part relative to it
and an absolute part. Where no bound can be given, `NoBound` is raised and the caller computes in double-double.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold.folding.double_double import F64, DoubleDouble
from bnfold.folding.expressions import Array

_UNIT = 2.0**-53
_SLACK = 1.0 + 2.0**-20  # covers the rounding of the bounds themselves
_LOWEST, _HIGHEST = -900, 900  # exponents between which no product under- or overflows
_EXACT = 53  # bits of a float64

# Significant bits, and the exponents of the smallest and largest number, of what is read from the source.
_STORED = {"float16": (11, -25, 16), "bfloat16": (8, -134, 128), "float32": (24, -150, 128)}


class NoBound(Exception):
    """Nothing can be said about the error."""


@dataclass(frozen=True)
class Bounded:
    """Numbers, each with |value - truth| <= relative * |value| + absolute.

    bits: significant bits at most, where the numbers are exact (0: they may not be). lowest, highest: every number is
    zero or between 2**lowest and 2**highest in magnitude.
    """

    value: F64
    relative: float
    absolute: F64 | float
    bits: int
    lowest: int
    highest: int

    @property
    def error(self) -> F64 | float:
        """The bound itself."""
        return self.absolute if self.relative == 0.0 else self.relative * np.abs(self.value) + self.absolute

    @property
    def is_relative(self) -> bool:
        """True when there is no absolute part."""
        return isinstance(self.absolute, float) and self.absolute == 0.0


class InBounds:
    """Evaluation in float64 with error bounds."""

    def stored(self, values: Array) -> Bounded:
        """Numbers of at most 24 bits, which are exact."""
        if values.dtype.name not in _STORED:
            raise NoBound
        return Bounded(values.astype(np.float64), 0.0, 0.0, *_STORED[values.dtype.name])

    def known(self, value: DoubleDouble) -> Bounded:
        """The nearest float64; exact where that is all there is."""
        hi = value.hi
        sizes = np.abs(hi[hi != 0.0])
        if not sizes.size:
            return Bounded(hi, 0.0, 0.0, 1, 0, 0)
        lowest, highest = (math.frexp(float(size))[1] for size in (sizes.min(), sizes.max()))
        if not np.isfinite(sizes).all() or lowest <= _LOWEST or highest > _HIGHEST:
            raise NoBound
        if value.lo.any():
            return Bounded(hi, _UNIT, 0.0, 0, lowest - 1, highest)
        return Bounded(hi, 0.0, 0.0, _bits(hi), lowest - 1, highest)

    def moved(self, x: Bounded, change: Callable[[F64], F64]) -> Bounded:
        """Numbers and bounds moved."""
        absolute = x.absolute if isinstance(x.absolute, float) else change(np.broadcast_to(x.absolute, x.value.shape))
        return replace(x, value=change(x.value), absolute=absolute)

    def joined(self, parts: list[Bounded], axis: int) -> Bounded:
        """Numbers and bounds joined; the largest relative bound holds for all."""
        absolute: F64 | float = 0.0
        if not all(part.is_relative for part in parts):
            absolute = np.concatenate([np.broadcast_to(part.absolute, part.value.shape) for part in parts], axis)
        return Bounded(
            np.concatenate([part.value for part in parts], axis),
            max(part.relative for part in parts),
            absolute,
            max(part.bits for part in parts) if all(part.bits for part in parts) else 0,
            min(part.lowest for part in parts),
            max(part.highest for part in parts),
        )

    def total(self, x: Bounded, axes: tuple[int, ...]) -> Bounded:
        """The sum; `(n - 1) u sum|x|` bounds its error in any order of summation."""
        count = math.prod(x.value.shape[axis] for axis in axes)
        value = np.asarray(x.value.sum(axis=axes, keepdims=True))
        size = np.asarray(np.abs(x.value).sum(axis=axes, keepdims=True))
        # The sum of the sizes may itself be too small by the same factor, which the slack covers.
        error = (x.relative + count * _UNIT) * _SLACK * size
        if not x.is_relative:
            error = error + np.broadcast_to(x.absolute, x.value.shape).sum(axis=axes, keepdims=True) * _SLACK
        return _checked(Bounded(value, 0.0, error, 0, x.lowest - 54, x.highest + max(1, count).bit_length()))

    def combined(self, kind: str, args: list[Bounded]) -> Bounded:
        """The operation and what it adds to the bound."""
        match kind, args:
            case "mul", [a, b]:
                return _checked(_product(a, b))
            case "div", [a, b] if b.is_relative:
                return _checked(_quotient(a, b))
            case (("add" | "sub"), [a, b]):
                value = a.value + b.value if kind == "add" else a.value - b.value
                error: Any = 0.0
                for part in (a, b):  # sums of exact numbers are off by their own rounding alone
                    error = error if part.relative == 0.0 and part.is_relative else error + part.error * _SLACK
                lowest = min(a.lowest, b.lowest) - 54
                return _checked(Bounded(value, _UNIT, error, 0, lowest, max(a.highest, b.highest) + 1))
            case _:
                raise NoBound


def _bits(values: F64) -> int:
    """The largest number of significant bits in any of the numbers, which are finite and not all zero."""
    significands = np.ldexp(np.frexp(values)[0], _EXACT).astype(np.int64)
    union = int(np.bitwise_or.reduce(np.abs(significands), axis=None))
    return _EXACT - ((union & -union).bit_length() - 1)


def _product(a: Bounded, b: Bounded) -> Bounded:
    value = a.value * b.value
    lowest, highest = a.lowest + b.lowest, a.highest + b.highest
    if a.bits and b.bits and a.bits + b.bits <= _EXACT:
        return Bounded(value, 0.0, 0.0, a.bits + b.bits, lowest, highest)
    relative = (a.relative + b.relative + a.relative * b.relative + _UNIT) * _SLACK
    absolute: Any = 0.0
    if not a.is_relative:
        absolute = absolute + a.absolute * np.abs(b.value) * ((1.0 + b.relative) * _SLACK)
    if not b.is_relative:
        absolute = absolute + b.absolute * np.abs(a.value) * ((1.0 + a.relative) * _SLACK)
    if not a.is_relative and not b.is_relative:
        absolute = absolute + a.absolute * b.absolute * _SLACK
    return Bounded(value, relative, absolute, 0, lowest, highest)


def _quotient(a: Bounded, b: Bounded) -> Bounded:
    if not bool((b.value != 0.0).all()):
        raise NoBound
    value = a.value / b.value
    relative = (a.relative + b.relative * 2.0 + _UNIT) * _SLACK
    absolute = a.absolute if a.is_relative else a.absolute / np.abs(b.value) * ((1.0 + 2.0 * b.relative) * _SLACK)
    return Bounded(value, relative, absolute, 0, a.lowest - b.highest, a.highest - b.lowest)


def _checked(x: Bounded) -> Bounded:
    """The numbers, if no intermediate result can have left the range where rounding is relative."""
    if x.lowest <= _LOWEST or x.highest > _HIGHEST or x.relative > 2.0**-30:
        raise NoBound
    return x
