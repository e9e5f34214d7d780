"""The search for the worst input: where, within the data's range, do the folded and the unfolded model differ most?

By gradient ascent in float64 where torch is there and knows the graph (`ascent_torch.py`), else by coordinate search in
ONNX Runtime (`coordinate.py`). What was found is judged in ONNX Runtime by T3's rule for few numbers (`hard_rule.py`)
against the float64 truth, and by T4.

A search picks the input where the folded model is worst, and not where the unfolded one is; so it would fail right
folds. What it may find is measured by the same search, from the same starts and as long, between the folded model and
two re-rounded copies of it (`rerounding.py`), which are as right as any fold can be: twice the larger of their finds,
`sought`, is allowed to the folded model on top. Measured, not bounded; docs/hard-inputs.md has the figures.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bnfold.errors import ParityError
from bnfold.parity.decisions import Decisions, decide
from bnfold.parity.hard_rule import HardCorner, check_hard
from bnfold.parity.rerounding import copies_of, rerounded
from bnfold.parity.search.by_coordinates import by_coordinates
from bnfold.parity.search.by_gradient import by_gradient
from bnfold.parity.search.coordinate import coordinate_search
from bnfold.parity.search.worst import (
    Climb,
    Clock,
    Ground,
    Inputs,
    Pair,
    WorstInput,
    apart,
    output_size,
    row_differences,
)
from bnfold.parity.weights.exact import FORMATS

if TYPE_CHECKING:
    from bnfold.parity.evidence import Evidence

__all__ = ["Pair", "WorstInput", "coordinate_search", "seek", "worst_input"]

STEPS = 40  # of gradient ascent
EVALUATIONS = 3000  # of coordinate search
SOUGHT_FACTOR = 2.0  # a re-rounded copy is up to twice as far as a right fold, and more often four times
_NULL_SEEDS = 1000  # other copies for the scatter than for the search
_STARTS, _START_NUMBERS = 8, 1 << 18  # rows to start from, and numbers in all of them: one image of 224 pixels
_LEAST = 1e-300


def worst_input(
    evidence: Evidence, *, seconds: float, seed: int = 0, progress: Callable[[str], None] | None = None
) -> WorstInput:
    """Seek the worst input for a bundle, from its goldens and within their range.

    seconds: for searching; judging what was found comes on top. Where that is too little for gradient ascent (a step in
    a network of the size of ResNet-50 takes seconds), it is a coordinate search.

    Raises ParityError where no search is possible, and says why.
    """
    pair = Pair(
        evidence.reference_proto, evidence.folded_proto, evidence.bundle.manifest.inputs, evidence.decided,
        evidence.device, evidence.threads,
    )  # fmt: skip
    goldens = [golden.inputs for golden in evidence.goldens]
    shapes = [{name: array.shape[1:] for name, array in inputs.items()} for inputs in goldens]
    alike = [inputs for inputs, found in zip(goldens, shapes, strict=True) if found == shapes[0]]
    data = {name: np.concatenate([inputs[name] for inputs in alike]) for name in goldens[0]}
    return seek(pair, data, seconds=seconds, seed=seed, progress=progress)


def seek(
    pair: Pair, data: Inputs, *, seconds: float = math.inf, seed: int = 0, steps: int = STEPS,
    evaluations: int = EVALUATIONS, progress: Callable[[str], None] | None = None, gradient: bool = True,
) -> WorstInput:  # fmt: skip
    """Seek the worst input for two models. data: rows to start from, whose range is not left.

    gradient: False for the coordinate search even where torch is there. The same arguments find the same inputs, unless
    time cuts them short.
    """
    clock = Clock(time.monotonic(), seconds, progress or (lambda _: None))
    ground = _survey(pair, data, seed)
    note = "no gradient search: none was asked for"
    if gradient:
        try:
            return _judge(ground, by_gradient(ground, steps, seed, clock), "", seed)
        except ParityError as problem:
            note = f"no gradient search: {problem}"
    return _judge(ground, by_coordinates(ground, evaluations, seed, clock), note, seed)


def _survey(pair: Pair, data: Inputs, seed: int) -> Ground:
    """Run both models on the samples and choose the starts: half where they differ most, half anywhere."""
    rows = {spec.name: np.asarray(data[spec.name]) for spec in pair.specs}
    ranges = {name: (float(array.min()), float(array.max())) for name, array in rows.items()}
    if all(low == high for low, high in ranges.values()):
        raise ParityError("the samples are all of one value, which leaves no range to search in; give others")
    unfolded, folded = pair.runner(pair.reference, optimise=False), pair.runner(pair.folded, optimise=True)
    before, after = unfolded(rows), folded(rows)
    scales = {name: output_size(array) for name, array in before.items() if array.dtype.name in FORMATS}
    if not scales:
        raise ParityError("the network has no floating-point output, of which a largest difference could be sought")
    if pair.decided is not None and (before[pair.decided].ndim != 2 or before[pair.decided].shape[1] < 2):
        pair = dataclasses.replace(pair, decided=None)
    differences = row_differences(before, after, scales)
    count, numbers = len(next(iter(rows.values()))), sum(array[0].size for array in rows.values())
    wanted = pair.batch or min(count, max(1, min(_STARTS, _START_NUMBERS // max(1, numbers))))
    worst = np.argsort(-differences, kind="stable")[: (wanted + 1) // 2] % count
    others = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(count), worst))
    chosen = np.resize(np.concatenate([worst, others]), wanted)
    starts = {name: array[chosen] for name, array in rows.items()}
    on_data = {name: float(apart(before[name], after[name]).max(initial=0.0)) for name in scales}
    return Ground(pair, starts, ranges, scales, on_data, unfolded, folded)


def _judge(ground: Ground, found: Climb, note: str, seed: int) -> WorstInput:
    """Run what was found, the worst row first, and judge it."""
    pair = ground.pair
    before, after = ground.unfolded(found.inputs), ground.folded(found.inputs)
    order = np.argsort(-row_differences(before, after, ground.scales), kind="stable")
    inputs = {name: array[order] for name, array in found.inputs.items() if len(array) == len(order)} or found.inputs
    before, after, truth = ground.unfolded(inputs), ground.folded(inputs), found.truth(inputs)
    again = [
        pair.runner(rerounded(pair.folded, seed + _NULL_SEEDS + number), optimise=True)(inputs)
        for number in range(copies_of(pair.folded))
    ]
    sought = {
        name: (SOUGHT_FACTOR * found.sought[name][0], SOUGHT_FACTOR * found.sought[name][1]) for name in ground.scales
    }
    corners = check_hard("worst input", truth, before, after, again, sought)
    differences = {name: float(apart(before[name], after[name]).max(initial=0.0)) for name in ground.scales}
    grown = max(differences, key=lambda name: differences[name] / max(ground.on_data[name], _LEAST))
    decisions = _decisions(pair.decided, before, after, truth, corners)
    return WorstInput(
        kind=found.kind,
        inputs=inputs,
        output=grown,
        difference=differences[grown],
        on_data=ground.on_data[grown],
        top1_same=None if decisions is None else not decisions.disagreements,
        margin=None if decisions is None else decisions.smallest_margin,
        steps=found.steps,
        corners=corners,
        decisions=decisions,
        note=note,
    )


def _decisions(
    decided: str | None, before: Inputs, after: Inputs, truth: Inputs, corners: Sequence[HardCorner]
) -> Decisions | None:
    """T4 on rows that were made so that the decision is close: excused within the rounding that T3 allows there."""
    if decided is None:
        return None
    limit = next(found.error_limit for found in corners if found.corner.output == decided)
    noise = 2 * limit if math.isfinite(limit) else 0.0
    return decide(before[decided], after[decided], noise=noise, truth=lambda rows: np.asarray(truth[decided][rows]))
