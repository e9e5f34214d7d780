"""T3, the oracle triangle: the folded model is as near to the truth as the unfolded one.

Three corners: the float64 truth, the unfolded model, the folded model. Over all elements of an output, parity holds if

    rms(folded - truth) <= k * rms(unfolded - truth) + floor
    max|folded - truth| <= 2k * max|unfolded - truth| + floor

The root mean square hardly varies from one right fold to the next; the maximum does (docs/parity.md has the spread),
and gets twice the room. It is there for the one bad element that a mean over a million hides. The floor is what nobody
can be blamed for: one rounding each of a folded weight, a folded bias and the result, and the truth's own rounding.

Where there are few outputs, the unfolded model may be nearer to the truth by mere luck. A fold that is beyond its limit
is therefore asked a second time, with the unfolded error plus the scatter: how far copies of the folded model are from
it whose numbers are one unit in the last place off (`bnfold.parity.rerounding`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.parity.weights.exact import FORMATS

Array = np.ndarray[Any, np.dtype[Any]]
F64 = np.ndarray[Any, np.dtype[np.float64]]

FACTOR = 2.0
# Folded weights are rounded to their dtype, the weights that they are made of are not rounded again: in half precision,
# where sums are kept in float32, that alone makes right folds up to 20 times less exact than the unfolded network.
HALF_FACTOR = 32.0
ROUNDINGS = 3  # of a weight, a bias, a result: an output of few elements may be more exact unfolded by mere luck
# Of the truth, relative to its size: a thousandth of float32's roundoff, so that it matters for float64 models alone.
TRUTH_ROUNDING = 1e-10


@dataclass(frozen=True)
class Corner:
    """One output of the network over all inputs.

    error: the largest |output - truth|; rms: the root mean square of it; scale, truth_rms: the same of the truth.
    factor: k. unit, smallest: unit roundoff and least number of the output's dtype. problem: why it fails without a
    measurement; doubt: why nothing can be told. scatter_rms, scatter_error: of re-rounded copies, 0 where nobody asked.
    """

    output: str
    elements: int
    unfolded_error: float
    folded_error: float
    unfolded_rms: float
    folded_rms: float
    scale: float
    truth_rms: float
    factor: float = FACTOR
    unit: float = 0.0
    smallest: float = 0.0
    problem: str = ""
    doubt: str = ""
    scatter_rms: float = 0.0
    scatter_error: float = 0.0

    @property
    def ratio(self) -> float:
        """rms(folded - truth) / rms(unfolded - truth); 1 where both are zero."""
        if self.folded_rms == 0 and self.unfolded_rms == 0:
            return 1.0
        return self.folded_rms / self.unfolded_rms if self.unfolded_rms else math.inf

    @property
    def rms_limit(self) -> float:
        """The largest root mean square of the folded error that still holds."""
        return self.factor * (self.unfolded_rms + self.scatter_rms) + self._floor * self.truth_rms + self.smallest

    @property
    def error_limit(self) -> float:
        """The largest folded error that still holds."""
        return 2 * self.factor * (self.unfolded_error + self.scatter_error) + self._floor * self.scale + self.smallest

    @property
    def _floor(self) -> float:
        return ROUNDINGS * self.unit + TRUTH_ROUNDING

    @property
    def holds(self) -> bool:
        """True when the folded model is as near to the truth as it must be."""
        within = self.folded_rms <= self.rms_limit and self.folded_error <= self.error_limit
        return not self.problem and not self.doubt and within

    def sentence(self) -> str:
        """What is wrong, for a person."""
        if self.problem or self.doubt:
            return f"output '{self.output}': {self.problem or self.doubt}"
        return (
            f"output '{self.output}': the folded model is {self.folded_rms:.3g} (worst {self.folded_error:.3g}) from "
            f"the float64 truth, the unfolded one {self.unfolded_rms:.3g} (worst {self.unfolded_error:.3g}); expected "
            f"at most {self.rms_limit:.3g} (worst {self.error_limit:.3g})"
        )


def compare(
    truth: Sequence[Mapping[str, Array]],
    unfolded: Sequence[Mapping[str, Array]],
    folded: Sequence[Mapping[str, Array]],
) -> tuple[Corner, ...]:
    """Compare every output over all batches: outputs by name, one mapping a batch, shapes alike."""
    names = list(truth[0]) if truth else []
    return tuple(
        corner(name, *([batch[name] for batch in side] for side in (truth, unfolded, folded))) for name in names
    )


def asked_again(
    corners: Sequence[Corner], copies: Callable[[], Iterable[Sequence[Mapping[str, Array]]]]
) -> tuple[Corner, ...]:
    """The corners, those beyond their limit with the scatter.

    copies: what re-rounded copies of the folded model answer to the same batches; called only if somebody has to ask.
    """
    beyond = {found.output for found in corners if not (found.holds or found.problem or found.doubt)}
    if not beyond:
        return tuple(corners)
    answers = list(copies())
    return tuple(_scattered(found, answers) if found.output in beyond else found for found in corners)


def _scattered(found: Corner, copies: Sequence[Sequence[Mapping[str, Array]]]) -> Corner:
    """How far the copies are from the first of them: what is under judgement has no say in its own limit."""
    first, *others = (_flat([batch[found.output] for batch in copy]) for copy in copies)
    moved = [np.abs(other - first) for other in others]
    moved = [np.where(np.isfinite(each), each, 0.0) for each in moved]
    return dataclasses.replace(
        found,
        scatter_rms=max((_rms(each) for each in moved), default=0.0),
        scatter_error=max((float(each.max(initial=0.0)) for each in moved), default=0.0),
    )


def worst_corner(corners: Sequence[Corner]) -> Corner:
    """The one with the largest ratio; one that was not measured comes first."""
    return max(corners, key=lambda found: math.inf if math.isnan(found.ratio) else found.ratio)


def distances(found: Corner, times: str = "", *, names: tuple[str, str] = ("folded", "unfolded")) -> str:
    """How far the two are from the truth, for a headline. times: the ratio as text, where it is not to be %.3g."""
    if math.isnan(found.folded_rms):
        return f"output '{found.output}' is not measured"
    folded, unfolded = f"{names[0]} {found.folded_rms:.2g}", f"{names[1]} {found.unfolded_rms:.2g}"
    return f"{folded}, {unfolded} ({times or format(found.ratio, '.3g')} times; at most {found.factor:g})"


def corner(name: str, truth: Sequence[Array], unfolded: Sequence[Array], folded: Sequence[Array]) -> Corner:
    """Compare one output over all batches."""
    for true, left, right in zip(truth, unfolded, folded, strict=True):
        if not true.shape == left.shape == right.shape:
            shapes = f"{list(left.shape)} unfolded, {list(right.shape)} folded, {list(true.shape)} in the truth"
            return _unmeasured(name, problem=f"the shapes differ: {shapes}")
    exact, before, after = (_flat(side) for side in (truth, unfolded, folded))
    problem = _apart(before, after)
    if problem:
        return _unmeasured(name, problem=problem)
    finite = np.isfinite(before)
    if not finite.any():
        return _unmeasured(name, doubt="no finite number to compare")
    if not np.isfinite(exact[finite]).all():
        return _unmeasured(name, doubt="the float64 truth is not finite where the reference is")
    return _doubted(_measured(name, exact[finite], before[finite], after[finite], folded[0].dtype.name))


def _measured(name: str, exact: F64, before: F64, after: F64, dtype: str) -> Corner:
    form = FORMATS.get(dtype)
    first, second = np.abs(before - exact), np.abs(after - exact)
    return Corner(
        output=name,
        elements=exact.size,
        unfolded_error=float(first.max()),
        folded_error=float(second.max()),
        unfolded_rms=_rms(first),
        folded_rms=_rms(second),
        scale=float(np.abs(exact).max()),
        truth_rms=_rms(exact),
        factor=HALF_FACTOR if dtype in ("float16", "bfloat16") else FACTOR,
        unit=form.unit_roundoff if form else 0.0,
        smallest=form.smallest if form else 0.0,
    )


def _doubted(found: Corner) -> Corner:
    """A truth that is far from the reference itself proves nothing: every fold would be as near to it."""
    if found.unfolded_error <= math.sqrt(found.unit) * found.scale + found.smallest:
        return found
    doubt = (
        f"the reference is {found.unfolded_error:.3g} from the float64 truth (largest output {found.scale:.3g}), more "
        "than rounding explains; the truth does not fit the reference, or the network loses all accuracy by itself"
    )
    return dataclasses.replace(found, doubt=doubt)


def _flat(side: Sequence[Array]) -> F64:
    return np.concatenate([np.asarray(batch).astype(np.float64).reshape(-1) for batch in side])


def _apart(before: F64, after: F64) -> str:
    """Where the two are not finite, they must be so together, and alike."""
    apart = np.isfinite(before) != np.isfinite(after)
    apart |= np.isnan(before) != np.isnan(after)
    apart |= np.isinf(before) & np.isinf(after) & (before != after)
    count = int(apart.sum())
    if not count:
        return ""
    bad = int(np.sum(~np.isfinite(after)))
    return f"{count} values are NaN or infinite in one model and not so in the other ({bad} in the folded one)"


def _unmeasured(name: str, *, problem: str = "", doubt: str = "") -> Corner:
    nothing = math.nan
    return Corner(name, 0, nothing, nothing, nothing, nothing, nothing, nothing, problem=problem, doubt=doubt)


def _rms(values: F64) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
