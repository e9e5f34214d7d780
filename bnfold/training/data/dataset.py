"""Images with classes, and a held-out split that training never sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bnfold.errors import DataError
from bnfold.preprocessing import Preprocessing

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

HOLD_OUT = 5  # every fifth sample, the last of each five
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Dataset:
    """images: (N, C, H, W), float32 as the network takes them, or uint8 as `preprocessing` takes a picture's bytes.

    classes: (N,) int64. held_out: (N,) bool. preprocessing: how a picture of 8 bits a channel becomes an input.
    """

    name: str
    images: Array
    classes: Array
    held_out: Array
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    def training_part(self) -> tuple[Array, Array]:
        """Images, as they are stored, and classes to train on."""
        return self.images[~self.held_out], self.classes[~self.held_out]

    def held_out_part(self) -> tuple[Array, Array]:
        """Images, as they are stored, and classes that training never sees."""
        return self.images[self.held_out], self.classes[self.held_out]


def scaling(preprocessing: Preprocessing) -> tuple[Array, Array]:
    """(factor, shift), each (C, 1, 1) float32: a byte b of a picture is the input b * factor + shift."""
    mean, std = (np.asarray(values, np.float64)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (preprocessing.scale / std).astype(np.float32), (-mean / std).astype(np.float32)


def prepare(images: Array, preprocessing: Preprocessing) -> Array:
    """Images (N, C, H, W) as the network takes them, float32: those of bytes are scaled."""
    if images.dtype != np.uint8:
        return images
    mean, std = (np.asarray(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    found = np.empty(images.shape, np.float32)
    for start in range(0, len(images), _ROWS):  # in float64, as bnfold.preprocessing has it, but never all at once
        part = slice(start, start + _ROWS)
        found[part] = (images[part] * preprocessing.scale - mean) / std
    return found


def room(shape: Sequence[int], most: int, what: str, remedy: str) -> None:
    """Raise DataError where images of bytes of this shape would take more memory than data.max_bytes allows."""
    needed = math.prod(shape)
    if needed > most:
        raise DataError(
            f"{what} needs {needed} bytes for {shape[0]} images of {' x '.join(map(str, shape[1:]))}, expected at most "
            f"{most}; {remedy}, or set data.max_bytes={needed}"
        )


def check(dataset: Dataset, what: str) -> None:
    """Raise DataError unless a data set is what `Dataset` says, and can be trained on and judged."""
    images, classes, held_out, labels = dataset.images, dataset.classes, dataset.held_out, dataset.labels
    picture = dataset.preprocessing
    wanted = (images, np.ndarray), (classes, np.ndarray), (held_out, np.ndarray), (picture, Preprocessing)
    for value, kind in wanted:
        if not isinstance(value, kind):
            raise DataError(f"{what} has an object of type {type(value).__name__}, expected a {kind.__name__} there")
    shape = (picture.channels, picture.height, picture.width)
    if images.dtype not in (np.uint8, np.float32) or images.shape[1:] != shape or not len(images):
        raise DataError(
            f"{what} has {images.dtype} images of {list(images.shape)}, expected uint8 or float32 of N x "
            f"{' x '.join(map(str, shape))}, as its preprocessing gives them"
        )
    for name, array, dtype in (("classes", classes, np.dtype(np.int64)), ("held_out", held_out, np.dtype(bool))):
        if array.dtype != dtype or array.shape != images.shape[:1]:
            raise DataError(
                f"{what} has {array.dtype} {list(array.shape)} as '{name}', expected {dtype} [{len(images)}]"
            )
    if images.dtype == np.float32 and not np.isfinite(images).all():
        raise DataError(f"{what} has NaN or infinite values in its images, expected finite ones; repair them")
    if not isinstance(labels, list | tuple):
        raise DataError(f"{what} has an object of type {type(labels).__name__} as 'labels', expected a tuple of texts")
    if len(labels) < 2 or not all(str(label) == label and label and label.isprintable() for label in labels):
        raise DataError(f"{what} has the labels {list(labels)!r:.200}, expected two or more printable texts")
    if str(dataset.name) != dataset.name or not dataset.name or not dataset.name.isprintable():
        raise DataError(f"{what} has the name {dataset.name!r:.80}, expected a printable text")
    if len(set(labels)) < len(labels):
        raise DataError(f"{what} has a label twice, expected a name of its own for each class; rename one")
    if classes.min() < 0 or classes.max() >= len(labels):
        raise DataError(
            f"{what} has classes from {classes.min()} to {classes.max()}, expected 0 to {len(labels) - 1} for "
            f"{len(labels)} labels"
        )
    trained = np.bincount(classes[~held_out], minlength=len(labels))
    if not trained.all():
        raise DataError(f"{what} has no sample to train on of the class '{labels[int(trained.argmin())]}'; add some")
    if not held_out.any():
        raise DataError(f"{what} holds no sample out, expected some that training never sees")
