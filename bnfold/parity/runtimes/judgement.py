"""How a cell and a session are judged: as T3 judges the fold, and T4 the answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from bnfold.parity.decisions import decide
from bnfold.parity.runtimes.cells import SAME_YARDSTICK, SOFTMAX_YARDSTICK, Cell, Invariance
from bnfold.parity.runtimes.trials import Batch, Outputs
from bnfold.parity.triangle import Corner, asked_again, compare, corner, worst_corner
from bnfold.parity.weights.exact import FORMATS
from bnfold.scores import to_chances

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
F64: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Answers: TypeAlias = Sequence[Outputs]
Copies: TypeAlias = Callable[[], Iterable[Answers]]

# TF32 keeps 11 bits of significand of each factor, the hidden one counted (NVIDIA A100 white paper, "TF32").
TF32_UNIT = 2.0**-11


def judge(
    cell: Cell, truth: Answers, yardstick: Answers, folded: Answers, *, decided: str | None, tf32: bool = False,
    copies: Copies | None = None,
) -> Cell:  # fmt: skip
    """The cell with its corners and its verdict.

    yardstick, folded: what the reference and the folded model answer, a mapping a batch. decided: the output whose
    largest element is an answer. copies: answers of the folded model's re-rounded copies, for what is beyond its limit.
    tf32: both ran in TF32, whose rounding is then what nobody can be blamed for.
    """
    corners = compare(truth, yardstick, folded)
    if tf32:
        corners = tuple(_in_tf32(found) for found in corners)
    if copies is not None:
        corners = asked_again(corners, copies)
    return _verdict(cell, corners, truth, yardstick, folded, decided)


def judge_chances(cell: Cell, truth: Answers, yardstick: Answers, folded: Answers, *, output: str) -> Cell:
    """As `judge`, where logits are known by their softmax alone. folded: probabilities, in float64; the rest: logits.

    Softmax halves differences at the least: each row of its Jacobian diag(p) - p p', which is symmetric, sums to
    2 p (1 - p) <= 1/2 in absolute value, so that the largest element and the Euclidean norm of a difference both lose
    half or more. The limits are therefore half of those of the logits. Errors of probabilities themselves are no
    yardstick: few rows of a confident network have any, and the ratio of two such is luck.
    """
    limit = corner(output, *([batch[output] for batch in side] for side in (truth, yardstick, yardstick)))
    true, before = ([{output: to_chances(batch[output], "logits")} for batch in side] for side in (truth, yardstick))
    found = corner(output, *([batch[output] for batch in side] for side in (true, before, folded)))
    corners = (
        dataclasses.replace(
            limit, unfolded_error=limit.unfolded_error / 2, unfolded_rms=limit.unfolded_rms / 2, scale=limit.scale / 2,
            truth_rms=limit.truth_rms / 2, smallest=limit.smallest / 2, folded_error=found.folded_error,
            folded_rms=found.folded_rms, problem=found.problem,
        ),
    )  # fmt: skip
    cell = dataclasses.replace(cell, yardstick=SOFTMAX_YARDSTICK)
    return _verdict(cell, corners, true, before, folded, output)


def _verdict(
    cell: Cell, corners: tuple[Corner, ...], truth: Answers, yardstick: Answers, folded: Answers, decided: str | None
) -> Cell:
    judged = dataclasses.replace(cell, corners=corners)
    wrong = [found.sentence() for found in corners if not found.holds and not found.doubt]
    doubts = [found.sentence() for found in corners if found.doubt]
    if decided is not None and not any(found.problem for found in corners):
        limits = [found.error_limit for found in corners if found.output == decided]
        noise = 2 * limits[0] if limits and math.isfinite(limits[0]) else 0.0
        true, before, after = (_joined(side, decided) for side in (truth, yardstick, folded))
        answers = decide(before, after, noise=noise, truth=lambda rows: true[rows])
        judged = dataclasses.replace(judged, agreeing=answers.rows - len(answers.disagreements))
        if not answers.holds:
            wrong.append(answers.sentences()[0])
    return dataclasses.replace(judged, problem="; ".join(wrong), doubt="" if wrong else "; ".join(doubts))


def judge_beside(
    cell: Cell, truth: Answers, cpu: Answers, here: Answers, folded: Answers, *, decided: str | None
) -> Cell:
    """As `judge`, on a provider whose kernels may be less exact than the CPU's.

    Where the folded model is beyond the limit that the reference sets on the CPU, it may still be as exact as the
    reference is in the same place (Winograd's or FFT convolutions, say): the loss is then the provider's, not the
    fold's, and the cell says so.
    """
    judged = judge(cell, truth, cpu, folded, decided=decided)
    if judged.holds is not False:
        return judged
    beside = judge(dataclasses.replace(cell, yardstick=SAME_YARDSTICK), truth, here, folded, decided=decided)
    if beside.holds is not True:
        # Where the reference here is no yardstick either, nothing can be told of the fold.
        return judged if beside.problem else beside
    note = (
        "beyond the limit that the reference sets on the CPU, and within the one that it sets here: this provider is "
        "less exact, the fold is not to blame"
    )
    return dataclasses.replace(beside, note=note)


def with_reference(cell: Cell, truth: Answers, reference: Answers) -> Cell:
    """The cell with what the reference does in this place: its own distance from the truth, of the worst output."""
    worst = worst_corner(compare(truth, reference, reference))
    return dataclasses.replace(cell, reference_rms=worst.unfolded_rms, reference_error=worst.unfolded_error)


def invariance(
    cell: Cell, runs: Sequence[tuple[Batch, Outputs]], limits: Mapping[str, float], sizes: tuple[int, ...]
) -> Invariance:
    """How far each row's answers are apart over all runs of one session.

    cell: whose place it is. limits: the error that T3 allows, by output. The first run that has a row is what its other
    runs are held against.
    """
    worst, ulp, limit = 0.0, 0.0, math.nan
    seen: set[int] = set()
    for name in limits:
        first: dict[int, Array] = {}
        apart = 0.0
        for batch, outputs in runs:
            for at, row in enumerate(batch.index.tolist()):
                base = first.setdefault(row, outputs[name][at])
                difference, _ = distance(base, outputs[name][at])
                apart = max(apart, difference)
                ulp = max(ulp, difference / _spacing(base) if difference else 0.0)
        seen |= first.keys()
        # The output that is nearest to its limit, or furthest beyond it, speaks for all.
        if math.isnan(limit) or apart * limit > worst * limits[name]:
            worst, limit = apart, limits[name]
    return Invariance(cell.place, sizes, len(seen), worst, ulp, limit, optimised=cell.optimised)


def distance(left: Array, right: Array) -> tuple[float, float]:
    """The largest difference of two arrays, absolute and in ulp of the larger of the two.

    Infinite where one is not finite and the other not alike. Integers have no ulp: there it is the difference again.
    """
    if left.shape != right.shape:
        return math.inf, math.inf
    first, second = left.astype(np.float64).reshape(-1), right.astype(np.float64).reshape(-1)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    if same.all():
        return 0.0, 0.0
    first, second = first[~same], second[~same]
    if not (np.isfinite(first) & np.isfinite(second)).all():
        return math.inf, math.inf
    difference = np.abs(first - second)
    form = FORMATS.get(left.dtype.name)
    if form is None:
        return float(difference.max()), float(difference.max())
    _, exponents = np.frexp(np.maximum(np.abs(first), np.abs(second)))
    units = difference / np.ldexp(1.0, np.maximum(exponents - 1, form.least_exponent) - form.bits + 1)
    return float(difference.max()), float(units.max())


def _spacing(row: Array) -> float:
    """One ulp of the largest number of a row; 1 for integers.

    Of that, not of each number: one that is zero but for rounding would turn rounding into millions of ulp.
    """
    form = FORMATS.get(row.dtype.name)
    if form is None:
        return 1.0
    wide = np.abs(row.astype(np.float64))
    largest = float(wide[np.isfinite(wide)].max(initial=0.0))
    return math.ldexp(1.0, max(math.frexp(largest)[1] - 1, form.least_exponent) - form.bits + 1)


def _in_tf32(found: Corner) -> Corner:
    """A corner of float32 with the unit roundoff of TF32, in its floor and in what makes a truth doubtful."""
    if found.unit != FORMATS["float32"].unit_roundoff or math.isnan(found.unfolded_error):
        return found
    wide = dataclasses.replace(found, unit=TF32_UNIT, doubt="")
    fits = wide.unfolded_error <= math.sqrt(TF32_UNIT) * wide.scale + wide.smallest
    return wide if fits else dataclasses.replace(wide, doubt=found.doubt)


def _joined(side: Answers, name: str) -> Array:
    return np.concatenate([outputs[name] for outputs in side])
