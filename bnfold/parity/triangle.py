"""T3, the oracle triangle: the folded model is as near to the truth as the unfolded one.

Three corners: the float64 truth, the unfolded model, the folded model. Parity holds when

    error(folded) <= k * error(unfolded) + floor

where an error is the largest |output - truth| over all elements of an output, and the floor is what nobody can be
blamed for: storing the result in its dtype, and the truth's own rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
F64 = np.ndarray[Any, np.dtype[np.float64]]

FACTOR = 2.0
# Relative to the largest |truth|: float64 networks of a thousand layers stay below it by a factor of ten, and it is
# 1/600 of float32's unit roundoff, so it only matters for float64 models.
TRUTH_ROUNDING = 1e-10
_UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


@dataclass(frozen=True)
class Corner:
    """One output of the network over all inputs. scale: the largest |truth|. rows: elements compared."""

    output: str
    elements: int
    unfolded_error: float
    folded_error: float
    unfolded_rms: float
    folded_rms: float
    scale: float
    floor: float
    factor: float
    problem: str = ""
    doubt: str = ""

    @property
    def ratio(self) -> float:
        """error(folded) / error(unfolded); 1 where both are zero."""
        if self.folded_error == 0 and self.unfolded_error == 0:
            return 1.0
        return self.folded_error / self.unfolded_error if self.unfolded_error else math.inf

    @property
    def limit(self) -> float:
        """The largest folded error that still holds."""
        return self.factor * self.unfolded_error + self.floor

    @property
    def holds(self) -> bool:
        """True when the folded model is as near to the truth as it must be."""
        return not self.problem and not self.doubt and self.folded_error <= self.limit

    def sentence(self) -> str:
        """What is wrong, for a person."""
        if self.problem or self.doubt:
            return f"output '{self.output}': {self.problem or self.doubt}"
        return (
            f"output '{self.output}': the folded model is {self.folded_error:.3g} from the float64 truth, the unfolded "
            f"one {self.unfolded_error:.3g}; expected at most {self.limit:.3g}"
        )


def compare(
    truth: Sequence[Mapping[str, Array]],
    unfolded: Sequence[Mapping[str, Array]],
    folded: Sequence[Mapping[str, Array]],
    *, factor: float = FACTOR,
) -> tuple[Corner, ...]:  # fmt: skip
    """Compare every output over all batches: outputs by name, one mapping a batch, shapes alike."""
    names = list(truth[0]) if truth else []
    return tuple(
        corner(name, *([batch[name] for batch in side] for side in (truth, unfolded, folded)), factor=factor)
        for name in names
    )


def corner(
    name: str, truth: Sequence[Array], unfolded: Sequence[Array], folded: Sequence[Array], *, factor: float = FACTOR
) -> Corner:
    """Compare one output over all batches."""
    for true, left, right in zip(truth, unfolded, folded, strict=True):
        if not true.shape == left.shape == right.shape:
            shapes = f"{list(left.shape)} unfolded, {list(right.shape)} folded, {list(true.shape)} in the truth"
            return _no_corner(name, factor, problem=f"the shapes differ: {shapes}")
    dtype = np.dtype(folded[0].dtype).name
    exact, before, after = (_flat(side) for side in (truth, unfolded, folded))
    finite = np.isfinite(before)
    problem = _not_finite(before, after)
    if problem or not np.any(finite & np.isfinite(exact)):
        return _no_corner(name, factor, problem=problem, doubt="" if problem else "no finite number to compare")
    if not np.all(np.isfinite(exact[finite])):
        return _no_corner(name, factor, doubt="the float64 truth is not finite where the reference is")
    scale = float(np.max(np.abs(exact[finite]), initial=0.0))
    first, second = (np.abs(side[finite] - exact[finite]) for side in (before, after))
    unit = _UNIT_ROUNDOFF.get(dtype, 0.0)
    found = Corner(
        name, int(finite.sum()), float(first.max()), float(second.max()), _rms(first), _rms(second), scale,
        (unit + TRUTH_ROUNDING) * scale + _smallest(dtype), factor,
    )  # fmt: skip
    if found.unfolded_error > math.sqrt(unit) * scale + _smallest(dtype):
        doubt = (
            f"the reference is {found.unfolded_error:.3g} from the float64 truth (largest output {scale:.3g}), more "
            "than rounding explains; the truth does not fit the reference, or the network loses all accuracy by itself"
        )
        return Corner(**{**found.__dict__, "doubt": doubt})
    return found


def _flat(side: Sequence[Array]) -> F64:
    return np.concatenate([np.asarray(batch).astype(np.float64).reshape(-1) for batch in side])


def _not_finite(before: F64, after: F64) -> str:
    """Where the two are not finite, they must be so together, and alike."""
    apart = np.isfinite(before) != np.isfinite(after)
    apart |= np.isnan(before) != np.isnan(after)
    apart |= np.isinf(before) & np.isinf(after) & (before != after)
    count = int(apart.sum())
    if not count:
        return ""
    bad = int(np.sum(~np.isfinite(after)))
    return f"{count} values are NaN or infinite in one model and not so in the other ({bad} in the folded one)"


def _no_corner(name: str, factor: float, *, problem: str = "", doubt: str = "") -> Corner:
    return Corner(name, 0, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, factor, problem, doubt)


def _rms(error: F64) -> float:
    return float(np.sqrt(np.mean(np.square(error))))


def _smallest(dtype: str) -> float:
    return {"float16": 2.0**-24, "float64": 5e-324}.get(dtype, 2.0**-149)
