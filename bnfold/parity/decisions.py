"""T4, decisions: the folded model gives the same answers.

A decision is the class with the largest output. Ties are counted, not hidden: numpy takes the first of equals, and a
row with a tie on either side says so. A row that changes its mind is a disagreement; it is excused only where the
float64 truth itself leaves the two classes closer than the models' own rounding.

Beside that, how far the two are apart: margins against the difference that was measured, the Kullback-Leibler
divergence of their probabilities, and signal against noise. These are measured; no bound from end to end stands behind
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.parity.distributions import divergence, noise_ratio
from bnfold.parity.report import plain

Array = np.ndarray[Any, np.dtype[Any]]
F64 = np.ndarray[Any, np.dtype[np.float64]]

CONFIDENCE = 0.95
MARGIN_FACTORS = (1, 10, 100)
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)
TOP = 5
TOP_CLASSES = 10  # with fewer classes, the five largest say little


@dataclass(frozen=True)
class Decisions:
    """Top-1 of two models over n rows.

    disagreements: rows with another class. excused: those of them that the truth cannot tell apart either. ties: rows
    where either model has two largest outputs. smallest_margin: of the unfolded model. Accuracies: where there are
    labels.

    margin_quantiles: of the unfolded model's top-1 margin, at QUANTILES. margin_shares: factor -> the share of rows
    whose margin is larger than so many times `largest_difference`, the largest difference of an output that was
    measured on these rows. kl_mean, kl_max: of the probabilities of the folded model from those of the unfolded one, in
    nats. snr: outputs to their difference, in dB. top_five: the share of rows with the same five largest classes, None
    below TOP_CLASSES classes. Rows that are not finite in both models disagree, count as "no" in margin_shares and
    top_five, and have no divergence.
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
    margin_quantiles: tuple[float, ...] = ()
    margin_shares: tuple[tuple[int, float], ...] = ()
    kl_mean: float = math.nan
    kl_max: float = math.nan
    snr: float = math.nan
    top_five: float | None = None

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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; a number that is not finite becomes null."""
        pairs = zip(QUANTILES if self.margin_quantiles else (), self.margin_quantiles, strict=True)
        document: dict[str, Any] = plain(
            {
                "rows": self.rows, "agreement": self.agreement, "disagreements": len(self.disagreements),
                "excused": self.excused, "ties": self.ties, "smallest_margin": self.smallest_margin,
                "median_margin": self.median_margin, "largest_difference": self.largest_difference,
                "unfolded_accuracy": self.unfolded_accuracy, "folded_accuracy": self.folded_accuracy,
                "disagreement_rate_below": self.rate_bound,
                "margin_quantiles": {f"{at:g}": value for at, value in pairs},
                "margin_above_difference": {f"{factor} times": share for factor, share in self.margin_shares},
                "kl_mean": self.kl_mean, "kl_max": self.kl_max, "signal_to_noise_db": self.snr,
                "top_five_agreement": self.top_five,
            }
        )  # fmt: skip
        return document


def decide(
    unfolded: Array, folded: Array, labels: Array | None = None, *, noise: float = 0.0,
    truth: Callable[[Array], Array] | None = None, output_kind: str = "logits",
) -> Decisions:  # fmt: skip
    """Compare answers. unfolded, folded: (N, classes); labels: (N,) of int64.

    truth: gives the float64 outputs (n, classes) of the rows with these indices; asked only for rows that disagree. A
    disagreement is excused where the truth has the two classes within `noise` of each other. What is not finite never
    agrees. output_kind: "probabilities" when the outputs need no softmax to be some.
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
    largest = float(np.abs(before[finite] - after[finite]).max(initial=0.0))
    kl = divergence(unfolded[finite], folded[finite], output_kind)
    judged = labels is not None and len(labels) > 0
    return Decisions(
        rows=len(before),
        disagreements=tuple(int(row) for row in apart),
        excused=excused,
        ties=int(ties.sum()),
        smallest_margin=float(margins.min(initial=math.inf)),
        median_margin=float(np.median(margins)) if len(margins) else math.nan,
        largest_difference=largest,
        unfolded_accuracy=float(np.mean(first == labels)) if judged else None,
        folded_accuracy=float(np.mean(second == labels)) if judged else None,
        margin_quantiles=_quantiles(margins),
        margin_shares=_shares(margins, largest, len(before)),
        kl_mean=float(kl.mean()) if len(kl) else math.nan,
        kl_max=float(kl.max()) if len(kl) else math.nan,
        snr=noise_ratio(before[finite], after[finite]),
        top_five=_same_top(before, after, finite),
    )


def _margins(outputs: F64) -> F64:
    """The largest output less the second largest, a row each; infinite where there is one class."""
    if outputs.shape[-1] < 2:
        return np.full(len(outputs), np.inf)
    with np.errstate(all="ignore"):
        top = np.partition(outputs, -2, axis=-1)[:, -2:]
        return np.asarray(top[:, 1] - top[:, 0])


def _quantiles(margins: F64) -> tuple[float, ...]:
    """At QUANTILES, each a margin that was seen: the least one that so large a share of the rows does not exceed."""
    if not len(margins):
        return ()
    return tuple(np.quantile(margins, QUANTILES, method="inverted_cdf").tolist())


def _shares(margins: F64, difference: float, rows: int) -> tuple[tuple[int, float], ...]:
    if not rows:
        return ()
    return tuple((factor, int(np.sum(margins > factor * difference)) / rows) for factor in MARGIN_FACTORS)


def _same_top(before: F64, after: F64, finite: Array) -> float | None:
    """The share of rows with the same TOP largest classes, in any order; the first of equals count."""
    if not len(before) or before.shape[-1] < TOP_CLASSES:
        return None
    left, right = (np.sort(np.argsort(-side, axis=-1, kind="stable")[:, :TOP], axis=-1) for side in (before, after))
    return float(np.mean(np.all(left == right, axis=-1) & finite))


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
