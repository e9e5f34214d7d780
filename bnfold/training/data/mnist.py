"""MNIST and what comes in its files: IDX, plain or under gzip (LeCun, Cortes and Burges, the format's description)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np

from bnfold.errors import DataError
from bnfold.training.data.dataset import Array, Dataset, room
from bnfold.training.data.normalisation import normalise
from bnfold.training.recipe.parts import Data

_IMAGES, _CLASSES = ("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)
_CLASS_COUNT = 10
_MOST_SIDE = 4096
_STEP = 2**20


def load(wanted: Data, path: Path) -> Dataset:
    """The four files of a folder; those that begin with t10k are held out."""
    parts = [_part(path, name, wanted.max_bytes) for name in ("train", "t10k")]
    shapes = [images.shape[1:] for images, _ in parts]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{path} has images of {shapes[0]} to train on and of {shapes[1]} held out, expected one size; "
            "take all four files of one release"
        )
    counts = [len(classes) for _, classes in parts]
    images = np.concatenate([images for images, _ in parts])[:, None]
    held_out = np.repeat([False, True], counts)
    return Dataset(
        name="mnist",
        images=images,
        classes=np.concatenate([classes for _, classes in parts]).astype(np.int64),
        held_out=held_out,
        labels=tuple(str(digit) for digit in range(_CLASS_COUNT)),
        preprocessing=normalise(images, held_out),
    )


def _part(folder: Path, name: str, most: int) -> tuple[Array, Array]:
    """(images (N, height, width) uint8, classes (N,) uint8) of the files that begin with a name."""
    images, classes = (_read_idx(_found(folder, f"{name}-{kind}"), sizes, most) for kind, sizes in (_IMAGES, _CLASSES))
    if len(images) != len(classes):
        raise DataError(
            f"{folder} has {len(images)} images and {len(classes)} labels in its files '{name}-...', expected the same "
            "number of each; take both files of one release"
        )
    if not len(classes) or classes.max() >= _CLASS_COUNT:
        found = f"the label {classes.max()}" if len(classes) else "no samples"
        raise DataError(
            f"{folder} has {found} in its files '{name}-...', expected labels from 0 to {_CLASS_COUNT - 1}; "
            "for another number of classes give an .npz file"
        )
    return images, classes


def _found(folder: Path, name: str) -> Path:
    candidates = [folder / f"{each}{end}" for end in ("", ".gz") for each in (name, name.replace("-idx", ".idx"))]
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(f"{folder} has no file {name}, nor {name}.gz; expected the four IDX files of MNIST there")


def _read_idx(path: Path, sizes: int, most: int) -> Array:
    """The values of an IDX file. Its header: 0, 0, 8 for unsigned bytes, the number of sizes, and the sizes."""
    try:
        with _opened(path) as stream:
            header = stream.read(4 + 4 * sizes)
            if len(header) < 4 + 4 * sizes or header[:4] != bytes((0, 0, 8, sizes)):
                raise DataError(
                    f"{path} begins with the bytes {header[:4].hex(' ') or '(none)'}, expected 00 00 08 0{sizes} and "
                    f"{sizes} sizes, as an IDX file of {'images' if sizes > 1 else 'labels'} has; fetch it again"
                )
            shape = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4))
            if not all(1 <= side <= _MOST_SIDE for side in shape[1:]):
                raise DataError(
                    f"{path} declares images of {shape[1:]}, expected sides from 1 to {_MOST_SIDE}; fetch it again"
                )
            room(shape, most, str(path), "take a smaller set")
            return np.frombuffer(_exactly(stream, math.prod(shape), path), np.uint8).reshape(shape)
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise DataError(f"{path} is no whole gzip file ({problem}); fetch it again") from None


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _exactly(stream: IO[bytes], count: int, path: Path) -> bytearray:
    """So many bytes and then the end. Step by step: a header that lies costs no more memory than the file has."""
    found = bytearray()
    while len(found) < count + 1:
        step = stream.read(min(_STEP, count + 1 - len(found)))
        if not step:
            break
        found += step
    if len(found) != count:
        more = "more" if len(found) > count else f"{len(found)}"
        raise DataError(f"{path} declares {count} bytes of values and has {more}; fetch it again")
    return found
