"""The trainer: a recipe (TOML) becomes a checkpoint (safetensors and JSON) that goes straight into fold-and-export.

recipe/         what a recipe may say, validated                 fields.py     keys of a table, declared once
networks/       networks with batch norm, a file each            data/         data sets, a file each
loop.py         the training loop                                trainer.py    recipe -> checkpoint
curves.py       history as CSV and as a picture                  checkpoint.py writing and strict reading
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
