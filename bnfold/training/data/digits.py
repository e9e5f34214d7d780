"""1,797 real handwritten digits, 8x8, 17 levels of grey (Alpaydin and Kaynak 1998, UCI), out of scikit-learn."""

from __future__ import annotations

import numpy as np

from bnfold.preprocessing import Preprocessing
from bnfold.training.data.dataset import HOLD_OUT, Dataset


def load() -> Dataset:
    """Every fifth of them is held out."""
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
