"""Numbers with the size of what they are made of, and how far a fold in float32 may be off.

Each number carries the sum of the absolute values of its terms: what is lost to rounding is in proportion to that, not
to the number itself, which may be a small difference of large ones (Higham, Accuracy and Stability, chapter 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.folding.double_double import DoubleDouble
from bnfold.folding.evaluation import Run, Source
from bnfold.folding.expressions import Array, Expr
from bnfold.parity.hypotheses.rewriting import Tree
from bnfold.parity.weights.exact import format_of

F64 = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Terms:
    """value, and size: the sum of the absolute values of its terms. One shape."""

    value: F64
    size: F64

    def each(self, change: Callable[[F64], F64]) -> Terms:
        """Both with the same change of layout."""
        return Terms(change(self.value), change(self.size))


class InTerms:
    """Evaluation in float64, sizes beside it."""

    def stored(self, values: Array) -> Terms:
        """Numbers of the source."""
        wide = values.astype(np.float64)
        return Terms(wide, np.abs(wide))

    def known(self, value: DoubleDouble) -> Terms:
        """Literals."""
        return Terms(value.hi, np.abs(value.hi))

    def moved(self, x: Terms, change: Callable[[F64], F64]) -> Terms:
        """Both moved."""
        return x.each(change)

    def joined(self, parts: list[Terms], axis: int) -> Terms:
        """Both joined."""
        return Terms(np.concatenate([x.value for x in parts], axis), np.concatenate([x.size for x in parts], axis))

    def total(self, x: Terms, axes: tuple[int, ...]) -> Terms:
        """Both summed."""
        return x.each(lambda part: np.asarray(part.sum(axis=axes, keepdims=True)))

    def combined(self, kind: str, args: list[Terms]) -> Terms:
        """An operation; a quotient or a root is as sensitive as its operands are."""
        match kind, args:
            case "sqrt", [x]:
                root = np.sqrt(x.value)
                return Terms(root, np.where(root > 0, x.size / np.where(root > 0, root, 1.0), 0.0))
            case "add", [x, y]:
                return Terms(x.value + y.value, x.size + y.size)
            case "sub", [x, y]:
                return Terms(x.value - y.value, x.size + y.size)
            case "mul", [x, y]:
                return Terms(x.value * y.value, x.size * y.size)
            case _, [x, y]:
                return Terms(x.value / y.value, x.size * y.size / (y.value * y.value))
        raise ValueError(f"operation {kind!r} is not known")


@dataclass(frozen=True)
class Slack:
    """How far a number may be from the exact one that was rounded to a dtype and computed in float32, or float64.

    roundings: units of the computation; unit: of it; ulp, smallest: of the dtype.
    """

    roundings: float
    unit: float
    ulp: float
    smallest: float

    @staticmethod
    def of(tree: Tree, dtype: np.dtype[Any]) -> Slack:
        """Of an expression: some units for each operation on the way, and the sums as they grow by chance."""
        form = format_of(dtype)
        unit = 2.0**-53 if form.bits > 24 else 2.0**-24
        return Slack(
            4 + 2 * min(tree.depth, 64) + 2 * math.sqrt(tree.summed), unit, 2.0 ** (1 - form.bits), form.smallest
        )

    def around(self, terms: Terms) -> F64:
        """The largest distance that rounding explains."""
        computed = self.roundings * self.unit * terms.size
        return np.asarray(0.51 * self.ulp * np.abs(terms.value) + computed + self.smallest)


def evaluate(expr: Expr, source: Source, rows: Sequence[int] | None = None) -> Terms:
    """An expression in float64, whole or at some rows of its first axis."""
    with np.errstate(all="ignore"):
        if rows is None:
            found = Run(expr, None, InTerms(), {}, source).whole()
            return found.each(lambda part: np.broadcast_to(part, expr.shape))
        run = Run(expr, 0, InTerms(), {}, source)
        parts = [run.rows(row, row + 1) for row in rows]
        full = (1, *expr.shape[1:])
        spread = [part.each(lambda x: np.broadcast_to(x, full)) for part in parts]
        return Terms(np.concatenate([x.value for x in spread]), np.concatenate([x.size for x in spread]))
