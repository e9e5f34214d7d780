"""Data sets, by name: one file each.

dataset.py   what all of them give     digits.py
"""

from __future__ import annotations

from bnfold.errors import DataError
from bnfold.training.data import digits
from bnfold.training.data.dataset import Array, Dataset, prepare, scaling
from bnfold.training.recipe.parts import Data

__all__ = ["Array", "Dataset", "load_dataset", "prepare", "scaling"]


def load_dataset(wanted: Data) -> Dataset:
    """The data set of a recipe. Raises DataError for one that is not known, or that cannot be read."""
    if wanted.name != "digits":
        raise DataError(f"data set '{wanted.name}' is not known; expected 'digits'")
    return digits.load()
