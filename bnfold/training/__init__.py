"""The trainer: a recipe (TOML) becomes a checkpoint (safetensors and JSON) that goes straight into fold-and-export.

What to train
    recipe/         what a recipe may say; fields.py: keys of a table, declared once
    networks/       networks, a file each, and the norms they take
    data/           data sets, a file each

Training
    trainer.py      recipe -> checkpoint
    loop.py         the epochs of a run; run.py: all that its next step depends on; followers.py: who hears of it
    execution.py    device, precision, compilation; memory.py: a batch that does not fit; smallest_batch.py
    distributed.py  one training in several processes; voice.py: which of them says why it ended
    optimizers.py   schedules.py  augmentation.py  ema.py  duration.py
    divergence.py   a loss that is no longer finite; trends.py: the norms, epoch by epoch
    place.py        where a run is written; snapshot.py: what it goes on from

What comes of it
    checkpoint.py   strict reading; saving.py: writing; folders.py: whole or not at all; architecture.py: the network
    curves.py       history as CSV and as a picture; scalars.py: for TensorBoard; tracking.py: for MLflow
    readiness/      what folding will meet in a network
    statistics.py   running statistics over a data set; recalibration.py: a checkpoint with new ones
    study/          with batch norm, without, and otherwise
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.training.checkpoint import Checkpoint, load_checkpoint
    from bnfold.training.recipe import Recipe, load_recipe
    from bnfold.training.trainer import train

__all__ = ["Checkpoint", "Recipe", "load_checkpoint", "load_recipe", "train"]

_HOME = {
    "Checkpoint": "bnfold.training.checkpoint",
    "Recipe": "bnfold.training.recipe",
    "load_checkpoint": "bnfold.training.checkpoint",
    "load_recipe": "bnfold.training.recipe",
    "train": "bnfold.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnfold.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
