"""The worst input by gradient ascent, where torch is there and knows the graph. Imports no torch by itself."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import time
from collections.abc import Callable

import numpy as np

from bnfold.errors import ParityError
from bnfold.parity.rerounding import rerounded
from bnfold.parity.search.worst import NULLS, Climb, Clock, Ground, Sought, in_batches, keep_largest
from bnfold.parity.weights.exact import FORMATS

_LEAST_STEPS = 6  # fewer get less far than the same time of coordinate search
_RUNS = 20  # of the unfolded network, for which a step is taken at first; what it does take is measured then


def by_gradient(ground: Ground, steps: int, seed: int, clock: Clock) -> Climb:
    """Climb on the difference, on the difference by the margin, and between re-rounded copies.

    Raises ParityError where an input has no gradient, torch is missing, or the graph is not known to it.
    """
    if any(array.dtype.name not in FORMATS for array in ground.starts.values()):
        raise ParityError("an input of integers has no gradient")
    if importlib.util.find_spec("torch") is None:
        raise ParityError("torch is not installed")
    _check_time(ground.parts * _RUNS * _timed(lambda: ground.unfolded(ground.starts)), clock)
    # By its name: nothing that imports this module, a server least of all, is to depend on torch.
    engine = importlib.import_module("bnfold.parity.search.ascent_torch")
    pair = ground.pair
    reference, folded = engine.graphs(pair.reference, pair.folded)
    climb = functools.partial(engine.gradient_search, starts=ground.starts, ranges=ground.ranges)
    share = 0.8 / ground.parts
    clock.say("worst input: gradient ascent on the difference")
    _check_time(ground.parts * _timed(lambda: climb(folded, reference, steps=0)), clock)
    clock = clock.rest()
    found = climb(folded, reference, steps=steps, deadline=clock.at(share))
    rows = [ground.cast(found.inputs)]
    if pair.decided is not None:
        clock.say("worst input: gradient ascent on the difference by the margin")
        deadline = clock.at(2 * share)
        rows.append(ground.cast(climb(folded, reference, steps=steps, decided=pair.decided, deadline=deadline).inputs))
    sought: Sought = {}
    for number in range(NULLS):
        clock.say(f"worst input: the same ascent against re-rounded copy {number + 1} of {NULLS}")
        (copy,) = engine.graphs(rerounded(pair.folded, seed + number))
        inputs = climb(copy, folded, steps=found.steps).inputs
        keep_largest(sought, copy.truth(inputs), folded.truth(inputs))
    every = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    truth = functools.partial(in_batches, reference.truth, batch=pair.batch)
    return Climb("gradient", every, sought, found.steps, truth)


def _timed(action: Callable[[], object]) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def _check_time(step: float, clock: Clock) -> None:
    """Raises ParityError where the time is too short. step: of all climbs together."""
    if clock.rest().seconds < _LEAST_STEPS * step:
        raise ParityError(
            f"{clock.seconds:.3g} s are too few for {_LEAST_STEPS} steps of gradient ascent, of about {step:.2g} s each"
        )
