"""T3's rule for few numbers: a kind of hard input, or an input that a search has found.

    rms(folded - truth) <= 4 * (rms(unfolded - truth) + scatter) + sought + floor
    max|folded - truth| <= 8 * (max|unfolded - truth| + scatter) + sought + floor

scatter: the most that any of several re-rounded folded models (`bnfold.parity.rerounding`) is away from the folded one.
sought: for an input that was searched for alone, see `bnfold.parity.search.seeking`. The floor is that of T3, and the
least normal number: below it a runtime may flush to zero. docs/hard-inputs.md has the spread over random networks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bnfold.parity.triangle import ROUNDINGS, TRUTH_ROUNDING, Corner, corner
from bnfold.parity.weights.exact import FORMATS

Array = np.ndarray[Any, np.dtype[Any]]
Outputs = Mapping[str, Array]
Status = Literal["holds", "fails", "cannot tell", "left out"]

# Of 900 right folds none came near this limit (docs/hard-inputs.md). One factor for every dtype: the scatter knows what
# rounding the weights does in half precision.
FACTOR = 4.0
VARIANTS = 8  # re-rounded models; `rerounding.copies_of` says when fewer will do


@dataclass(frozen=True)
class HardCorner:
    """One output on the rows of one kind.

    corner: errors against the truth. scatter, sought: root mean square and maximum. rows: judged; left_out: rows where
    the unfolded network is not finite, so that nothing is asked of the folded one. normal: the least of the dtype.
    """

    kind: str
    corner: Corner
    scatter: tuple[float, float]
    normal: float
    rows: int
    left_out: int
    sought: tuple[float, float] = (0.0, 0.0)

    @property
    def _floor(self) -> float:
        return ROUNDINGS * self.corner.unit + TRUTH_ROUNDING

    @property
    def rms_limit(self) -> float:
        """The largest root mean square of the folded error that still holds."""
        found, floor = self.corner, self._floor * self.corner.truth_rms + self.normal
        return FACTOR * (found.unfolded_rms + self.scatter[0]) + self.sought[0] + floor

    @property
    def error_limit(self) -> float:
        """The largest folded error that still holds."""
        found, floor = self.corner, self._floor * self.corner.scale + self.normal
        return 2 * FACTOR * (found.unfolded_error + self.scatter[1]) + self.sought[1] + floor

    @property
    def status(self) -> Status:
        """Whether the folded model is as near to the truth as rounding lets it be."""
        if not self.rows:
            return "left out"
        if self.corner.problem:
            return "fails"
        if self.corner.doubt:
            return "cannot tell"
        found = self.corner
        return "holds" if found.folded_rms <= self.rms_limit and found.folded_error <= self.error_limit else "fails"

    def sentence(self) -> str:
        """What is to be said, for a person."""
        found, place = self.corner, f"{self.kind}, output '{self.corner.output}'"
        if not self.rows:
            return f"{place}: left out, the unfolded network is not finite there"
        if found.problem or found.doubt:
            return f"{place}: {found.problem or found.doubt}"
        return (
            f"{place}: the folded model is {found.folded_rms:.3g} (worst {found.folded_error:.3g}) from the float64 "
            f"truth, the unfolded one {found.unfolded_rms:.3g} (worst {found.unfolded_error:.3g}), a folded model with "
            f"its numbers one ulp off {self.scatter[0]:.3g} (worst {self.scatter[1]:.3g}) from it; expected at "
            f"most {self.rms_limit:.3g} (worst {self.error_limit:.3g})"
        )


def check_hard(
    kind: str, truth: Outputs, unfolded: Outputs, folded: Outputs, again: Sequence[Outputs],
    sought: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[HardCorner, ...]:  # fmt: skip
    """Judge every floating-point output on the rows of one kind; outputs by name, rows first, float64 for the truth.

    again: what re-rounded folded models answer (`copies_of` them). sought: (rms, max) by output.
    """
    kept = _finite_rows(unfolded)
    left_out = int(np.sum(~kept))
    found = []
    for name in truth:
        if unfolded[name].dtype.name not in FORMATS:
            continue
        true, before, after = (side[name][kept] for side in (truth, unfolded, folded))
        moved = [answers[name][kept] for answers in again]
        found.append(_judge(corner(name, [true], [before], [after]), kind, after, moved, left_out))
    return tuple(dataclasses.replace(one, sought=(sought or {}).get(one.corner.output, (0.0, 0.0))) for one in found)


def _finite_rows(unfolded: Outputs) -> Array:
    """Rows all of whose outputs are finite in the unfolded network; outputs of other lengths have a say in none."""
    rows = len(next(iter(unfolded.values())))
    kept = np.ones(rows, bool)
    for array in unfolded.values():
        if array.dtype.name in FORMATS and len(array) == rows:
            kept &= np.isfinite(array.astype(np.float64)).reshape(rows, -1).all(axis=1)
    return kept


def _judge(found: Corner, kind: str, folded: Array, again: Sequence[Array], left_out: int) -> HardCorner:
    moved = [np.abs(answers.astype(np.float64) - folded.astype(np.float64)) for answers in again if folded.size]
    moved = [np.where(np.isfinite(each), each, 0.0) for each in moved]
    rms = max((float(np.sqrt(np.mean(each**2))) for each in moved), default=0.0)
    most = max((float(each.max()) for each in moved), default=0.0)
    normal = math.ldexp(1.0, FORMATS[folded.dtype.name].least_exponent)
    return HardCorner(kind, found, (rms, most), normal, len(folded), left_out)
