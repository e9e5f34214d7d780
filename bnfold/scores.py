"""What class scores say: probabilities, and the order of the classes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
F64: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


def to_chances(scores: Array, output_kind: str) -> F64:
    """The probability of each class, in float64. scores: (N, C), finite; logits go through softmax, others stay."""
    chances: F64 = scores.astype(np.float64)
    if output_kind == "logits":
        raised = np.exp(chances - chances.max(axis=1, keepdims=True))
        chances = raised / raised.sum(axis=1, keepdims=True)
    return chances


def rank(scores: Array, top: int) -> Array:
    """The `top` largest classes of each row, the largest first, the first of equals before the second: (N, top).

    By score, not by chance: softmax rounds neighbours together.
    """
    return np.asarray(np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :top])
