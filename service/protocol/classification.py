"""The classification extension: the largest scores of each row as text, "score:class" or "score:class:label".

Source: extension_classification in the documentation of the Triton server; its server writes six decimals ("%f"), takes
all classes where more are asked for, and gives the shape [rows, k], or [k] where a model has no batch axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.errors import BadRequest
from service.protocol.tensors import Array, Port


def classify(scores: Array, port: Port, count: int, labels: Sequence[str]) -> tuple[list[str], list[int]]:
    """The texts in row-major order and their shape; of equal scores the first class comes first.

    Raises BadRequest for NaN, which has no rank.
    """
    if scores.dtype.kind == "f" and np.isnan(scores).any():
        raise BadRequest(f"output {port.name!r} holds NaN for this input, which has no rank; ask for its numbers")
    rows = scores.reshape(scores.shape[0], -1) if port.has_batch else scores.reshape(1, -1)
    descending = -rows if rows.dtype.kind == "f" else ~rows  # the complement turns the order of whole numbers round
    best = np.argsort(descending, axis=1, kind="stable")[:, :count]
    form = "%f:%d" if rows.dtype.kind == "f" else "%d:%d"
    texts = [
        form % (score, index) + (f":{labels[index]}" if index < len(labels) else "")
        for chosen, values in zip(best.tolist(), np.take_along_axis(rows, best, axis=1).tolist(), strict=True)
        for index, score in zip(chosen, values, strict=True)
    ]
    return texts, list(best.shape) if port.has_batch else [best.shape[1]]
