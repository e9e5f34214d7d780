"""A data set that the user's own code gives: `module:factory` in the recipe."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from bnfold.errors import DataError
from bnfold.training.data.dataset import Dataset


def load(name: str, folder: Path) -> Dataset:
    """What the factory returns. Its module is looked for beside the recipe, then in the current folder."""
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise DataError(f"data set '{name}' is not known; expected module:factory, say mydata:make")
    for place in (Path.cwd(), folder.resolve()):
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
    try:
        factory: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
        made = factory()
    except Exception as problem:  # whatever the user's own code raises
        raise DataError(f"the data set {name} cannot be made: {type(problem).__name__}: {problem}") from problem
    if not isinstance(made, Dataset):
        raise DataError(
            f"the data set {name} is an object of type {type(made).__name__}, expected a bnfold.training.data.Dataset"
        )
    return made
