"""Arrays in an .npz file, as numpy.savez writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bnfold.errors import DataError
from bnfold.preprocessing import MAX_SIDE, Preprocessing
from bnfold.samples import unpack
from bnfold.training.data.dataset import Array, Dataset
from bnfold.training.data.normalisation import normalise
from bnfold.training.data.split import hold_out, refuse_choice
from bnfold.training.recipe.parts import Data

_KNOWN = ("images", "classes", "labels", "names", "held_out")
_MOST_CLASSES = 65_536


def load(wanted: Data, path: Path) -> Dataset:
    """`images`, `classes` (or `labels`); `names` of the classes and `held_out`, one truth value an image, may be there.

    images: (N, H, W) or (N, C, H, W), uint8, or floats from 0 to 1.
    """
    arrays = _read(path, wanted.max_bytes)
    images = _images(arrays["images"], path)
    classes = _classes(arrays, len(images), path)
    labels = _labels(arrays.get("names"), classes, path)
    if "held_out" in arrays:
        refuse_choice(wanted, str(path))
        held_out = arrays["held_out"]
    else:
        held_out = hold_out(classes, wanted.held_out, wanted.seed, labels, str(path))
    if held_out.shape != classes.shape or held_out.dtype != bool or held_out.all():
        raise DataError(
            f"{path} has {held_out.dtype} {list(held_out.shape)} as 'held_out', expected one bool for each of "
            f"{len(images)} images, not all of them true"
        )
    preprocessing = normalise(images, held_out) if images.dtype == np.uint8 else _as_they_are(images)
    return Dataset("npz", images, classes, held_out, labels, preprocessing)


def _read(path: Path, most: int) -> dict[str, Array]:
    arrays = unpack(path, most, "take a smaller set, or set data.max_bytes={}")
    for name, array in arrays.items():
        if name not in _KNOWN or not isinstance(array, np.ndarray):
            raise DataError(f"{path} has the unknown array {name!r:.80}, expected only {', '.join(_KNOWN)}; remove it")
    if "images" not in arrays or ("classes" in arrays) == ("labels" in arrays):
        raise DataError(f"{path} has the arrays {sorted(arrays)}, expected 'images' and either 'classes' or 'labels'")
    return arrays


def _images(images: Array, path: Path) -> Array:
    """(N, C, H, W), uint8 or float32."""
    channels = 1 if images.ndim == 3 else images.shape[1] if images.ndim == 4 else 0
    if channels not in (1, 3) or not images.size or max(images.shape[-2:]) > MAX_SIDE:
        raise DataError(
            f"{path} has images of shape {list(images.shape)}, expected (N, H, W), or (N, C, H, W) with 1 or 3 "
            f"channels, and sides of 1 to {MAX_SIDE}"
        )
    if images.dtype != np.uint8:
        if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):  # false for NaN
            raise DataError(
                f"{path} has images of {images.dtype}, expected uint8, or floats from 0 to 1, the levels of a picture "
                "divided by 255; convert them"
            )
        images = images.astype(np.float32)
    return np.ascontiguousarray(images.reshape(len(images), channels, *images.shape[-2:]))


def _classes(arrays: dict[str, Array], count: int, path: Path) -> Array:
    name = "classes" if "classes" in arrays else "labels"
    classes = arrays[name]
    if classes.dtype.kind not in "iu" or classes.shape != (count,):
        raise DataError(
            f"{path} has {classes.dtype} {list(classes.shape)} as '{name}', expected one integer for each of {count} "
            "images"
        )
    if classes.min() < 0 or classes.max() >= _MOST_CLASSES:
        found = classes.min() if classes.min() < 0 else classes.max()
        raise DataError(f"{path} has {found} in '{name}', expected numbers from 0 to {_MOST_CLASSES - 1}")
    return classes.astype(np.int64)


def _labels(names: Array | None, classes: Array, path: Path) -> tuple[str, ...]:
    if names is None:
        return tuple(str(number) for number in range(int(classes.max()) + 1))
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{path} has {names.dtype} {list(names.shape)} as 'names', expected one text for each class")
    return tuple(names.tolist())


def _as_they_are(images: Array) -> Preprocessing:
    """Of floats from 0 to 1: a picture's level is divided by 255, no more."""
    channels, height, width = images.shape[1:]
    return Preprocessing("L" if channels == 1 else "RGB", height, width, 1 / 255, (0.0,) * channels, (1.0,) * channels)
