"""The worst input by coordinate search, in ONNX Runtime alone: without torch, and for integers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bnfold.parity.oracle import run_float64
from bnfold.parity.rerounding import rerounded
from bnfold.parity.search.coordinate import BATCH, coordinate_search
from bnfold.parity.search.worst import (
    NULLS,
    Array,
    Climb,
    Clock,
    Ground,
    Inputs,
    Run,
    Sought,
    in_batches,
    keep_largest,
    margins,
    row_differences,
)  # fmt: skip

Objective = Callable[[Inputs, Inputs], Array]


@dataclass(frozen=True)
class _Packing:
    """Several inputs as one vector of float64, and back. shapes: of a row, by name."""

    shapes: Mapping[str, tuple[int, ...]]

    def flat(self, inputs: Inputs) -> Array:
        return np.concatenate(
            [np.asarray(inputs[name], np.float64).reshape(len(inputs[name]), -1) for name in self.shapes], axis=1
        )

    def unflat(self, points: Array) -> dict[str, Array]:
        found, begin = {}, 0
        for name, shape in self.shapes.items():
            end = begin + math.prod(shape)
            found[name] = points[:, begin:end].reshape(len(points), *shape)
            begin = end
        return found


def by_coordinates(ground: Ground, evaluations: int, seed: int, clock: Clock) -> Climb:
    """Search for the difference, for the difference by the margin, and between re-rounded copies."""
    pair, share, clock = ground.pair, 0.8 / ground.parts, clock.rest()
    search = functools.partial(_search, ground, seed)
    clock.say("worst input: coordinate search for the difference")
    objective = functools.partial(row_differences, scales=ground.scales)
    inputs, done = search(objective, ground.unfolded, ground.folded, evaluations, clock.at(share))
    rows = [inputs]
    if pair.decided is not None:
        clock.say("worst input: coordinate search for the difference by the margin")
        by_margin = functools.partial(_by_margin, ground, pair.decided)
        rows.append(search(by_margin, ground.unfolded, ground.folded, evaluations, clock.at(2 * share))[0])
    sought: Sought = {}
    for number in range(NULLS):
        clock.say(f"worst input: the same search against re-rounded copy {number + 1} of {NULLS}")
        copy = pair.runner(rerounded(pair.folded, seed + number), optimise=True)
        inputs, _ = search(objective, ground.folded, copy, done, math.inf)
        keep_largest(sought, copy(inputs), ground.folded(inputs))
    every = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    truth = functools.partial(in_batches, functools.partial(run_float64, pair.reference), batch=pair.batch)
    return Climb("coordinate", every, sought, done, truth)


def _search(
    ground: Ground, seed: int, objective: Objective, one: Run, other: Run, budget: int, deadline: float
) -> tuple[dict[str, Array], int]:
    """The best input, one row, and how many were tried."""
    packing = _Packing({name: tuple(array.shape[1:]) for name, array in ground.starts.items()})

    def difference(points: Array) -> Array:
        inputs = ground.cast(packing.unflat(points))
        return objective(one(inputs), other(inputs))

    def spread(value: Callable[[str], float]) -> Array:
        rows = {name: np.full(array[:1].shape, value(name)) for name, array in ground.starts.items()}
        return np.asarray(packing.flat(rows)[0])

    low, high = (spread(lambda name, side=side: ground.ranges[name][side]) for side in (0, 1))  # type: ignore[misc]
    whole = spread(lambda name: float(ground.starts[name].dtype.kind in "iub")) > 0
    found = coordinate_search(
        difference, packing.flat(ground.starts), low, high, budget, seed, deadline=deadline, whole=whole,
        batch=max(BATCH, ground.pair.batch or 1),
    )  # fmt: skip
    return ground.cast(packing.unflat(found.best[None])), found.evaluations


def _by_margin(ground: Ground, decided: str, before: Inputs, after: Inputs) -> Array:
    """The difference by the margin of the unfolded model, which ends at the rounding of the output."""
    scale = ground.scales[decided]
    floor = scale * np.finfo(np.float32).eps
    return row_differences(before, after, ground.scales) / (np.nan_to_num(margins(before[decided])) + floor)
