"""Which samples are held out, where a data set does not say it itself."""

from __future__ import annotations

import numpy as np

from bnfold.errors import DataError
from bnfold.training.data.dataset import Array
from bnfold.training.recipe.parts import Data


def hold_out(classes: Array, share: float, seed: int, labels: tuple[str, ...], what: str) -> Array:
    """(N,) bool: about `share` of every class, chosen by a permutation; at least one sample is on each side.

    Raises DataError for a class with fewer than two samples.
    """
    held_out = np.zeros(len(classes), bool)
    # Not default_rng: its stream may change with numpy's version, that of RandomState is frozen (NEP 19).
    random = np.random.RandomState(seed)
    order = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[order], np.arange(len(labels) + 1))
    for label, start, end in zip(labels, starts, starts[1:], strict=False):
        members = order[start:end]
        if len(members) < 2:
            raise DataError(
                f"{what} has {len(members)} samples of the class '{label}', expected at least 2: one to train on, one "
                "to hold out; add samples or leave the class out"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out[random.permutation(members)[:count]] = True
    return held_out


def refuse_choice(wanted: Data, what: str) -> None:
    """Raise DataError where a recipe chooses held-out samples of a data set that says itself which they are."""
    unsaid = Data(wanted.name)
    if (wanted.held_out, wanted.seed) != (unsaid.held_out, unsaid.seed):
        raise DataError(f"{what} says itself which samples are held out; leave out data.held_out and data.seed")
