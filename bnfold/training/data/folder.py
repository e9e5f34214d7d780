"""A folder with a folder of pictures for every class, decoded once into one array of bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bnfold.errors import DataError
from bnfold.preprocessing import Preprocessing, decode_image
from bnfold.samples import IMAGES
from bnfold.training.data.dataset import Array, Dataset, room
from bnfold.training.data.normalisation import normalise
from bnfold.training.data.split import hold_out, refuse_choice
from bnfold.training.recipe.parts import Data

_PARTS = ("train", "val")
_LEFT_BEHIND = ("thumbs.db", "desktop.ini")  # by Windows, in any folder of pictures
_LONGEST_FILE = 2**28
_MOST_THREADS = 8  # each may hold a picture of 33 million pixels, decoded


def load(wanted: Data, path: Path) -> Dataset:
    """`path/<class>/*.png`, or `path/train/<class>/` and `path/val/<class>/`; then the second part is held out."""
    if not path.is_dir():
        raise DataError(f"{path} is no folder; expected one with a folder of pictures for every class")
    parts = [path / part for part in _PARTS]
    roots = parts if all(part.is_dir() for part in parts) else [path]
    found = [_pictures(root) for root in roots]
    labels = _labels(roots, found)
    files = [file for part in found for label in labels for file in part[label]]
    numbers = [index for part in found for index, label in enumerate(labels) for _ in part[label]]
    classes = np.asarray(numbers, np.int64)
    if len(found) == 2:
        refuse_choice(wanted, str(path))
        held_out = np.arange(len(files)) >= sum(len(each) for each in found[0].values())
    else:
        held_out = hold_out(classes, wanted.held_out, wanted.seed, labels, str(path))
    images = _decoded(files, wanted, path)
    return Dataset("folder", images, classes, held_out, labels, normalise(images, held_out))


def _labels(roots: Sequence[Path], found: Sequence[Mapping[str, Sequence[Path]]]) -> tuple[str, ...]:
    labels = tuple(sorted(found[0]))
    if len(labels) < 2:
        found_one = f"only the folder '{labels[0]}'" if labels else "no folder"
        raise DataError(
            f"{roots[0]} has {found_one} in it, expected a folder of pictures for each of two or more classes, or "
            "train/ and val/ with such folders"
        )
    for label in sorted(set(found[-1]) ^ set(labels)):
        which, other = (roots[0], roots[-1]) if label in labels else (roots[-1], roots[0])
        raise DataError(f"{which} has the class '{label}' and {other} has not; expected the same classes in both")
    return labels


def _pictures(root: Path) -> dict[str, list[Path]]:
    """The files of every class, in the order of their names."""
    found = {}
    for item in _visible(root):
        if item.is_dir():
            if not item.name.isprintable():  # it would be a label, which a checkpoint and a bundle cannot hold
                raise DataError(f"{root} has the folder {item.name!r}, expected a printable name of a class; rename it")
            found[item.name] = _files(item)
        elif item.suffix.lower() in IMAGES:
            raise DataError(f"{item} lies beside the folders of the classes; move it into that of its class")
    return found


def _files(folder: Path) -> list[Path]:
    found = _visible(folder)
    for item in found:
        if item.is_dir():
            raise DataError(
                f"{item} is a folder in that of a class; expected pictures in <class>/, or in train/<class>/ and "
                "val/<class>/, both of them; move or rename the folders"
            )
        if item.suffix.lower() not in IMAGES or not item.is_file():
            raise DataError(
                f"{item} is no picture that is read; expected files ending in {', '.join(IMAGES)} in the folder of a "
                "class; convert or remove it"
            )
    if not found:
        raise DataError(f"{folder} has no picture in it; add some, or remove the class")
    return found


def _visible(folder: Path) -> list[Path]:
    return sorted(
        item for item in folder.iterdir() if not item.name.startswith(".") and item.name.lower() not in _LEFT_BEHIND
    )


def _decoded(files: Sequence[Path], wanted: Data, path: Path) -> Array:
    """(N, C, size, size) uint8: each file upright and resized as a server does it with the pictures it is sent."""
    channels = 1 if wanted.mode == "L" else 3
    shape = (len(files), channels, wanted.size, wanted.size)
    room(shape, wanted.max_bytes, str(path), "lower data.size")
    # Without a scale and a mean the decoder gives the levels of the resized picture: whole numbers.
    levels = Preprocessing(wanted.mode, wanted.size, wanted.size, 1.0, (0.0,) * channels, (1.0,) * channels)
    images = np.empty(shape, np.uint8)

    def decode(index: int) -> None:
        images[index] = _decode(files[index], levels)

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, range(len(files))):  # the first fault is raised here, and nothing else begins
            pass
    return images


def _decode(file: Path, levels: Preprocessing) -> Array:
    try:
        size = file.stat().st_size
        if size > _LONGEST_FILE:
            raise DataError(f"the file has {size} bytes, expected at most {_LONGEST_FILE}; make it smaller")
        return decode_image(file.read_bytes(), levels)
    except (DataError, OSError) as problem:
        raise DataError(f"{file}: {problem}") from None
