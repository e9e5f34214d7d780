"""Data sets, by name: one file each.

dataset.py        what all of them give              digits.py
split.py          which samples are held out         mnist.py
normalisation.py  mean and deviation of the rest     cifar10.py
                                                     synthetic.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import DataError
from bnfold.training.data import cifar10, digits, mnist, synthetic
from bnfold.training.data.dataset import Array, Dataset, prepare, scaling
from bnfold.training.fields import describe
from bnfold.training.recipe.parts import Data

__all__ = ["Array", "Dataset", "load_dataset", "prepare", "scaling"]


@dataclass(frozen=True)
class _Source:
    """How a data set is loaded, from its path or beside a recipe, and the keys of [data] that mean something to it."""

    load: Callable[[Data, Path], Dataset]
    keys: tuple[str, ...] = ()


SOURCES = {
    "digits": _Source(lambda *_: digits.load()),
    "mnist": _Source(mnist.load, ("path", "max_bytes")),
    "cifar10": _Source(cifar10.load, ("path", "max_bytes")),
    "synthetic": _Source(
        lambda wanted, _: synthetic.load(wanted),
        ("size", "mode", "count", "classes", "held_out", "seed", "max_bytes"),
    ),
}


def load_dataset(wanted: Data, folder: Path = Path()) -> Dataset:
    """The data set of a recipe. folder: the recipe's own, where relative paths begin.

    Raises DataError for one that is not known, that cannot be read, or that a key does not fit.
    """
    source = SOURCES.get(wanted.name)
    if source is None:
        raise DataError(f"data set '{wanted.name}' is not known; expected one of {', '.join(SOURCES)}")
    for key in describe(Data):
        value = getattr(wanted, key.name)
        if key.name not in ("name", *source.keys) and value != key.default:
            known = f"it knows {', '.join(source.keys)}" if source.keys else "it knows no other key"
            raise DataError(
                f"the recipe has {value!r} as 'data.{key.name}', which means nothing to the data set '{wanted.name}'; "
                f"{known}; leave it out"
            )
    try:
        return source.load(wanted, _path(wanted, folder) if "path" in source.keys else folder)
    except OSError as problem:
        raise DataError(f"the data set '{wanted.name}' cannot be read: {problem}") from None
    except MemoryError:
        raise DataError(f"the data set '{wanted.name}' does not fit into this machine's memory; take less") from None


def _path(wanted: Data, folder: Path) -> Path:
    if not wanted.path:
        raise DataError(f"the recipe has no 'data.path', which the data set '{wanted.name}' needs; set it")
    path = folder / wanted.path
    if not path.exists():
        raise DataError(f"{path} is not there; expected the data set '{wanted.name}'; correct data.path")
    return path
