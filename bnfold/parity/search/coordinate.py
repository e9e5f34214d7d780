"""Coordinate search: the largest value of a function that only answers, with no gradient to be had.

Random local search over blocks of coordinates that shrink (as the square attack of Andriushchenko et al. 2020 does over
images): each round makes a batch of candidates out of the best input so far, and keeps the best of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
F64 = np.ndarray[Any, np.dtype[np.float64]]

BATCH = 16  # candidates of a round
_FIRST_SHARE = 0.5  # of the coordinates, that a candidate of the first rounds changes


@dataclass(frozen=True, eq=False)
class Found:
    """The best input, (d,) of float64, its value, and how often the function was asked."""

    best: F64
    value: float
    evaluations: int


def coordinate_search(
    difference: Callable[[Array], Array], start: Array, low: Array | float, high: Array | float, budget: int,
    seed: int, *, deadline: float = math.inf, whole: Array | bool = False, batch: int = BATCH,
) -> Found:  # fmt: skip
    """Seek the input with the largest difference.

    difference: (n, d) inputs to (n,) values; NaN counts for nothing. start: (n, d). low, high: of each coordinate, or
    of all. budget: how many inputs may be tried, the starts counted; deadline: of time.monotonic, passed by one round
    at most. whole: coordinates that are integers. The same arguments find the same input, unless time cuts them short.
    """
    rng = np.random.default_rng(seed)
    points = np.array(start, np.float64)[: max(1, budget)]
    size = points.shape[1]
    lows, highs = (np.broadcast_to(np.asarray(limit, np.float64), (size,)) for limit in (low, high))
    integral = np.broadcast_to(np.asarray(whole, bool), (size,))
    values = _asked(difference, points)
    best, value, used = points[values.argmax()], float(values.max()), len(points)
    while used < budget and time.monotonic() <= deadline:
        count = min(batch, budget - used)
        share = max(1 / size, _FIRST_SHARE * (1 - used / budget) ** 3)
        points = _candidates(best, lows, highs, share, count, rng)
        points = np.where(integral, np.round(points), points)
        values = _asked(difference, points)
        used += count
        if float(values.max()) > value:
            best, value = points[values.argmax()], float(values.max())
    return Found(best, value, used)


def _asked(difference: Callable[[Array], Array], points: F64) -> F64:
    values = np.asarray(difference(points), np.float64)
    return np.where(np.isnan(values), -np.inf, values)


def _candidates(best: F64, low: F64, high: F64, share: float, count: int, rng: np.random.Generator) -> F64:
    """Copies with a block or scattered coordinates at an end of the range, each or all alike, or anywhere in it."""
    size = len(best)
    found = np.repeat(best[None], count, axis=0)
    for row in found:
        if rng.random() < 0.5:
            begin, length = int(rng.integers(size)), max(1, round(share * size))
            where = np.zeros(size, bool)
            where[np.arange(begin, begin + length) % size] = True
        else:
            where = rng.random(size) < share
            where[rng.integers(size)] = True
        kind = rng.integers(4)
        if kind == 0:
            new = np.where(rng.random(size) < 0.5, low, high)
        elif kind == 1:
            new = low + rng.random(size) * (high - low)
        elif kind == 2:
            new = low if rng.random() < 0.5 else high
        else:
            new = low + high - row
        row[where] = new[where]
    return found
