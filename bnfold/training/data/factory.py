"""A data set that the user's own code gives: `module:factory` in the recipe."""

from __future__ import annotations

from pathlib import Path

from bnfold.errors import DataError
from bnfold.factories import is_spec, make
from bnfold.training.data.dataset import Dataset


def load(name: str, folder: Path) -> Dataset:
    """What the factory returns. Its module is looked for beside the recipe, then in the current folder."""
    if not is_spec(name):
        raise DataError(f"data set '{name}' is not known; expected module:factory, say mydata:make")
    made = make(name, f"the data set {name}", (Path.cwd(), folder.resolve()))
    if not isinstance(made, Dataset):
        raise DataError(
            f"the data set {name} is an object of type {type(made).__name__}, expected a bnfold.training.data.Dataset"
        )
    return made
