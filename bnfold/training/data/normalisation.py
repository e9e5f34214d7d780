"""The preprocessing that belongs to images of bytes: mean and deviation of those that are trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bnfold.preprocessing import Preprocessing
from bnfold.training.data.dataset import Array

_DIGITS = 4  # enough for the eye of a network, short enough to be read
_ROWS = 1024


def normalise(images: Array, held_out: Array) -> Preprocessing:
    """Preprocessing after which every channel of the training part has mean 0 and deviation 1, nearly.

    images: (N, C, H, W) uint8, C of 1 or 3. A channel that never changes is left at its scale.
    """
    statistics = [_mean_and_std(counts) for counts in _levels(images, held_out)]
    return Preprocessing(
        mode="L" if images.shape[1] == 1 else "RGB",
        height=images.shape[2],
        width=images.shape[3],
        scale=1 / 255,
        mean=tuple(round(mean, _DIGITS) for mean, _ in statistics),
        std=tuple(round(std, _DIGITS) or 1.0 for _, std in statistics),
    )


def _levels(images: Array, held_out: Array) -> Iterator[list[int]]:
    """How often each of the 256 levels stands in each channel: whole numbers, so that the sums have no rounding."""
    rows = np.flatnonzero(~held_out)
    for channel in range(images.shape[1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(rows), _ROWS):
            counts += np.bincount(images[rows[start : start + _ROWS], channel].ravel(), minlength=256)
        yield counts.tolist()


def _mean_and_std(counts: list[int]) -> tuple[float, float]:
    """Of levels from 0 to 1."""
    total = sum(counts)
    first = sum(level * count for level, count in enumerate(counts))
    second = sum(level * level * count for level, count in enumerate(counts))
    return first / total / 255, math.sqrt(total * second - first * first) / total / 255
