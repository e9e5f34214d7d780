"""Data sets, by name: one file each.

dataset.py        what all of them give              digits.py
split.py          which samples are held out         mnist.py
normalisation.py  mean and deviation of the rest     cifar10.py
                                                     folder.py     pictures, a folder a class
                                                     npz.py        arrays
                                                     synthetic.py  made up
                                                     factory.py    the user's own code
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import DataError
from bnfold.training.data import cifar10, digits, factory, mnist, npz, synthetic
from bnfold.training.data import folder as pictures
from bnfold.training.data.dataset import Array, Dataset, check, prepare, scaling
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
    "folder": _Source(pictures.load, ("path", "size", "mode", "held_out", "seed", "max_bytes")),
    "npz": _Source(npz.load, ("path", "held_out", "seed", "max_bytes")),
    "synthetic": _Source(
        lambda wanted, _: synthetic.load(wanted),
        ("size", "mode", "count", "classes", "held_out", "seed", "max_bytes"),
    ),
}


def load_dataset(wanted: Data, folder: Path = Path()) -> Dataset:
    """The data set of a recipe. folder: the recipe's own, where relative paths begin.

    Raises DataError for one that is not known, that cannot be read, or that a key does not fit.
    """
    own = _Source(lambda wanted, folder: factory.load(wanted.name, folder))
    source = own if ":" in wanted.name else SOURCES.get(wanted.name)
    if source is None:
        raise DataError(
            f"data set '{wanted.name}' is not known; expected one of {', '.join(SOURCES)}, or module:factory"
        )
    _check_keys(wanted, source.keys)
    try:
        found = source.load(wanted, _path(wanted, folder) if "path" in source.keys else folder)
    except OSError as problem:
        raise DataError(f"the data set '{wanted.name}' cannot be read: {problem}") from None
    except MemoryError:
        raise DataError(f"the data set '{wanted.name}' does not fit into this machine's memory; take less") from None
    check(found, str(folder / wanted.path) if wanted.path else f"the data set '{wanted.name}'")
    return found


def _check_keys(wanted: Data, known: tuple[str, ...]) -> None:
    for key in describe(Data):
        value = getattr(wanted, key.name)
        if key.name not in ("name", *known) and value != key.default:
            others = f"it knows {', '.join(known)}" if known else "it knows no other key"
            raise DataError(
                f"the recipe has {value!r} as 'data.{key.name}', which means nothing to the data set '{wanted.name}'; "
                f"{others}; leave it out"
            )


def _path(wanted: Data, folder: Path) -> Path:
    if not wanted.path:
        raise DataError(f"the recipe has no 'data.path', which the data set '{wanted.name}' needs; set it")
    path = folder / wanted.path
    if not path.exists():
        raise DataError(f"{path} is not there; expected the data set '{wanted.name}'; correct data.path")
    return path
