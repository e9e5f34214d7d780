"""T4, decisions: the folded model gives the same answers.

A decision is the class with the largest output. Ties are counted, not hidden: numpy takes the first of equals, and a
row with a tie on either side says so. A row that changes its mind is a disagreement; it is excused only where the
float64 truth itself leaves the two classes closer than the models' own rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
F64 = np.ndarray[Any, np.dtype[np.float64]]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Decisions:
    """Top-1 of two models over n rows.

    disagreements: rows with another class. excused: those of them that the truth cannot tell apart either. ties: rows
    where either model has two largest outputs. smallest_margin: of the unfolded model. Accuracies: where there are
    labels.
    """

    rows: int
    disagreements: tuple[int, ...]
    excused: int
    ties: int
    smallest_margin: float
    median_margin: float
    largest_difference: float
    unfolded_accuracy: float | None
    folded_accuracy: float | None

    @property
    def agreement(self) -> float:
        """The share of rows with the same class."""
        return 1 - len(self.disagreements) / self.rows if self.rows else math.nan

    @property
    def holds(self) -> bool:
        """True when there are rows, and every disagreement is excused."""
        return self.rows > 0 and self.excused == len(self.disagreements)

    @property
    def rate_bound(self) -> float:
        """Upper 95% bound on the rate of disagreement, if the rows are independent draws of what will come."""
        return clopper_pearson(len(self.disagreements), self.rows)

    def sentences(self) -> tuple[str, ...]:
        """What is to be said of rows that disagree or tie."""
        found = []
        wrong = len(self.disagreements)
        if wrong:
            shown = ", ".join(map(str, self.disagreements[:10])) + (", ..." if wrong > 10 else "")
            found.append(
                f"{wrong} of {self.rows} top-1 answers differ from the unfolded model's (rows {shown}); {self.excused} "
                "of them are closer in the float64 truth than rounding can tell apart"
            )
        if self.ties:
            found.append(f"{self.ties} of {self.rows} rows have two equal largest outputs; the first of them counts")
        return tuple(found)


def decide(
    unfolded: Array, folded: Array, labels: Array | None = None, *, noise: float = 0.0,
    truth: Callable[[Array], Array] | None = None,
) -> Decisions:  # fmt: skip
    """Compare answers. unfolded, folded: (N, classes); labels: (N,) of int64.

    truth: gives the float64 outputs (n, classes) of the rows with these indices; asked only for rows that disagree. A
    disagreement is excused where the truth has the two classes within `noise` of each other. What is not finite never
    agrees.
    """
    before, after = unfolded.astype(np.float64), folded.astype(np.float64)
    first, second = before.argmax(axis=-1), after.argmax(axis=-1)
    finite = np.all(np.isfinite(before) & np.isfinite(after), axis=-1).reshape(-1)
    apart = np.flatnonzero((first != second) | ~finite)
    excused = 0
    if len(apart) and truth is not None:
        true = np.asarray(truth(apart), np.float64)
        at = np.arange(len(apart))
        gap = np.abs(true[at, first[apart]] - true[at, second[apart]])
        excused = int(np.sum((gap <= noise) & finite[apart]))
    margins = _margins(before[finite])
    ties = (_margins(before) == 0) | (_margins(after) == 0)
    difference = np.abs(before[finite] - after[finite])
    judged = labels is not None and len(labels) > 0
    return Decisions(
        rows=len(before),
        disagreements=tuple(int(row) for row in apart),
        excused=excused,
        ties=int(ties.sum()),
        smallest_margin=float(margins.min(initial=math.inf)),
        median_margin=float(np.median(margins)) if len(margins) else math.nan,
        largest_difference=float(difference.max(initial=0.0)),
        unfolded_accuracy=float(np.mean(first == labels)) if judged else None,
        folded_accuracy=float(np.mean(second == labels)) if judged else None,
    )


def _margins(outputs: F64) -> F64:
    """The largest output less the second largest, a row each; infinite where there is one class."""
    if outputs.shape[-1] < 2:
        return np.full(len(outputs), np.inf)
    with np.errstate(all="ignore"):
        top = np.partition(outputs, -2, axis=-1)[:, -2:]
        return np.asarray(top[:, 1] - top[:, 0])


def clopper_pearson(wrong: int, rows: int, confidence: float = CONFIDENCE) -> float:
    """The exact one-sided upper bound on a rate of which `wrong` of `rows` were seen (Clopper and Pearson 1934).

    The rate p at which `wrong` or fewer have probability 1 - confidence; 0 of 1,000 gives 0.30%.
    """
    if rows == 0 or wrong >= rows:
        return 1.0
    low, high = wrong / rows, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if _at_most(wrong, rows, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(wrong: int, rows: int, rate: float) -> float:
    """The probability of `wrong` or fewer out of `rows` independent draws."""
    if rate >= 1:
        return 0.0
    logs = [
        math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
        + k * math.log(rate) + (rows - k) * math.log1p(-rate)
        for k in range(wrong + 1)
    ] if rate > 0 else [0.0]  # fmt: skip
    return math.fsum(math.exp(value) for value in logs)
