"""What T2 finds at one place of a fold: the worst difference of two results, in terms of its bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.folding.expressions import Array

F64 = np.ndarray[Any, np.dtype[np.float64]]

_NAMED = 6  # channels that a sentence names
SLACK = 1 + 2.0**-30  # on the bound, for the float64 arithmetic that evaluates it


@dataclass(frozen=True)
class SiteResult:
    """One site. worst_ratio: the largest |folded - unfolded| / bound, at worst_channel; below 1 the bound holds.

    kind: "site", a linear and the norms right behind it, or "region", whatever else an edit changed. bad: elements
    beyond the bound, or not finite; bad_channels: those that hold one. problem: why the site cannot be bounded or run,
    empty otherwise. note: why there is no bound for it, empty otherwise.
    """

    linear: str
    norms: tuple[str, ...]
    tensor: str
    fan_in: int
    elements: int = 0
    bad: int = 0
    worst_ratio: float = 0.0
    worst_difference: float = 0.0
    worst_channel: int = 0
    bad_channels: tuple[int, ...] = ()
    problem: str = ""
    note: str = ""
    kind: str = "site"

    @property
    def holds(self) -> bool:
        """True when no element is beyond the bound."""
        return not self.problem and self.bad == 0

    def sentence(self) -> str:
        """What is wrong, for a person."""
        where = f"{self.kind} '{self.linear}' (tensor '{self.tensor}', folded with {', '.join(self.norms)})"
        if self.problem:
            return f"{where} cannot be bounded: {self.problem}"
        return (
            f"{where}: {self.bad} of {self.elements} outputs, in {channels(self.bad_channels)}, differ by more than "
            f"rounding can explain; the worst, in channel {self.worst_channel}, by {self.worst_difference:.3g}, "
            f"{self.worst_ratio:.3g} times its bound"
        )


def exceeded(left: Array, right: Array, bound: F64, empty: SiteResult, *, axis: int) -> SiteResult:
    """`empty` with what two results against a bound say. NaN and infinity never pass. axis: of the channels."""
    if left.shape != right.shape or left.shape != bound.shape:
        problem = f"the folded side has shape {right.shape}, the unfolded one {left.shape}"
        return dataclasses.replace(empty, problem=problem)
    with np.errstate(all="ignore"):
        difference = np.abs(left.astype(np.float64) - right.astype(np.float64))
        ratio = np.where(difference == 0, 0.0, difference / bound)
    ratio[~(np.isfinite(difference) & np.isfinite(bound))] = np.inf
    if not ratio.size:
        return empty
    at = np.unravel_index(int(ratio.argmax()), ratio.shape)
    return dataclasses.replace(
        empty,
        elements=ratio.size,
        bad=int(np.sum(ratio > 1)),
        bad_channels=_channels(ratio > 1, axis),
        worst_ratio=float(ratio[at]),
        worst_difference=float(difference[at]),
        worst_channel=int(at[axis]) if ratio.ndim else 0,
    )


def worse(left: SiteResult, right: SiteResult) -> SiteResult:
    """Two results of one site as one."""
    if left.problem or right.problem:
        return left if left.problem else right
    worst = right if not right.worst_ratio <= left.worst_ratio else left
    return dataclasses.replace(
        worst,
        elements=left.elements + right.elements,
        bad=left.bad + right.bad,
        bad_channels=tuple(sorted({*left.bad_channels, *right.bad_channels})),
    )


def channels(numbers: Sequence[int]) -> str:
    """Channels as a sentence names them: all of a few, the first of many."""
    if len(numbers) <= _NAMED:
        return f"channel{'s' if len(numbers) != 1 else ''} {', '.join(map(str, numbers))}"
    return f"{len(numbers)} channels ({', '.join(map(str, numbers[:_NAMED]))}, ...)"


def _channels(bad: np.ndarray[Any, np.dtype[np.bool_]], axis: int) -> tuple[int, ...]:
    if not bad.ndim:
        return (0,) if bad.any() else ()
    return tuple(np.flatnonzero(bad.any(axis=tuple(at for at in range(bad.ndim) if at != axis))).tolist())
