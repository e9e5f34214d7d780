"""Data sets with a fixed held-out split that training never sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bnfold.errors import DataError
from bnfold.preprocessing import Preprocessing

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

HOLD_OUT = 5  # every fifth sample, the last of each five


@dataclass(frozen=True, eq=False)
class Dataset:
    """images: (N, C, H, W) float32 as the network takes them; classes: (N,) int64; held_out: (N,) bool.

    preprocessing: how a picture of 8 bits a channel becomes such an image.
    """

    name: str
    images: Array
    classes: Array
    held_out: Array
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    def training_part(self) -> tuple[Array, Array]:
        """Images and classes to train on."""
        return self.images[~self.held_out], self.classes[~self.held_out]

    def held_out_part(self) -> tuple[Array, Array]:
        """Images and classes that training never sees."""
        return self.images[self.held_out], self.classes[self.held_out]


def load_dataset(name: str) -> Dataset:
    """A data set by its name. Raises DataError for one that is not known."""
    if name != "digits":
        raise DataError(f"data set '{name}' is not known; expected 'digits'")
    return _digits()


def _digits() -> Dataset:
    """1,797 real handwritten digits, 8x8, 17 levels of grey (Alpaydin and Kaynak 1998, UCI), out of scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (np.asarray(bunch.images, np.float32) / np.float32(16))[:, None]
    return Dataset(
        name="digits",
        images=np.ascontiguousarray(images),
        classes=np.asarray(bunch.target, np.int64),
        held_out=np.arange(len(images)) % HOLD_OUT == HOLD_OUT - 1,
        labels=tuple(str(digit) for digit in range(10)),
        preprocessing=Preprocessing(mode="L", height=8, width=8, scale=1 / 255, mean=(0.0,), std=(1.0,)),
    )
