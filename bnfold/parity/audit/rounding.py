"""How far a fold that is done in the dtype of its parameters may be from the exact one.

A value that is a sum of products of source numbers, computed with roundings of at most u each, is within

    c * u * sum|terms|

of its exact value to first order, in whatever order that is done (Higham, Accuracy and Stability of Numerical
Algorithms, chapter 3). c counts the roundings on the longest way from a source number to the result: one for each
addition and product, two for a quotient (a reciprocal, then a product), two for a square root (rsqrt, pow), half of
what came before it, one for a literal such as epsilon, one for the last store. Below the least normal number m a
rounding is off by u * m, whatever the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.folding.double_double import F64, DoubleDouble
from bnfold.folding.evaluation import Run, Source
from bnfold.folding.expressions import Array, Expr
from bnfold.parity.weights.exact import Format


@dataclass(frozen=True)
class Room:
    """What a fold in the parameter's dtype may be off. value: exact but for float64's rounding; size: sum|terms|."""

    value: F64
    size: F64
    roundings: int


@dataclass(frozen=True)
class _Term:
    value: F64
    size: F64
    count: float


def room_of(expr: Expr, form: Format) -> Room:
    """The exact value, the sum of absolute terms and the number of roundings of an expression."""
    with np.errstate(all="ignore"):
        found = Run(expr, None, _InRoundings(math.ldexp(1.0, form.least_exponent)), {}, Source()).whole()
    count = found.count + 1 if found.count else 0.0
    return Room(np.asarray(found.value, np.float64), np.asarray(found.size, np.float64), math.ceil(count))


class _InRoundings:
    """Evaluation that carries the sum of absolute terms and the number of roundings along. least: normal number."""

    def __init__(self, least: float) -> None:
        self._least = least

    def stored(self, values: Array) -> _Term:
        """A number of the source: exact."""
        exact = values.astype(np.float64)
        return _Term(exact, np.abs(exact), 0.0)

    def known(self, value: DoubleDouble) -> _Term:
        """A literal: rounded to the dtype once, unless it is a small whole number."""
        whole = bool((np.rint(value.hi) == value.hi).all() and (np.abs(value.hi) <= 16).all())
        return _Term(value.hi, np.abs(value.hi), 0.0 if whole else 1.0)

    def moved(self, x: _Term, change: Callable[[F64], F64]) -> _Term:
        """Nothing is computed."""
        return _Term(change(x.value), change(x.size), x.count)

    def joined(self, parts: list[_Term], axis: int) -> _Term:
        """The largest count holds for all."""
        values = np.concatenate([part.value for part in parts], axis)
        sizes = np.concatenate([part.size for part in parts], axis)
        return _Term(values, sizes, max(part.count for part in parts))

    def total(self, x: _Term, axes: tuple[int, ...]) -> _Term:
        """A sum of n terms in any order."""
        terms = math.prod(x.value.shape[axis] for axis in axes)
        sums: tuple[Any, Any] = (x.value.sum(axis=axes, keepdims=True), x.size.sum(axis=axes, keepdims=True))
        return _Term(np.asarray(sums[0]), np.asarray(sums[1]), x.count + max(0, terms - 1))

    def combined(self, kind: str, args: list[_Term]) -> _Term:
        """Errors to first order; none is smaller than a rounding of the least normal number."""
        first = args[0]
        if kind == "sqrt":
            root = np.sqrt(first.value)
            grown = np.where(first.value == 0, 0.0, first.size / np.where(first.value == 0, 1.0, first.value))
            return self._made(root, root * grown, first.count / 2 + 2)
        second = args[1]
        match kind:
            case "add" | "sub":
                sign = 1.0 if kind == "add" else -1.0
                if not first.size.any():  # 0 - x rounds nothing
                    return _Term(first.value + sign * second.value, first.size + second.size, second.count)
                count = max(first.count, second.count) + 1
                return self._made(first.value + sign * second.value, first.size + second.size, count)
            case "mul":
                count = first.count + second.count + 1
                return self._made(first.value * second.value, first.size * second.size, count)
        by = np.abs(second.value)
        count = first.count + second.count + 2
        return self._made(first.value / second.value, first.size / by * (second.size / by), count)

    def _made(self, value: F64, size: F64, count: float) -> _Term:
        return _Term(value, np.maximum(size, self._least), count)
