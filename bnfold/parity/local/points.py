"""Points: values at which the unfolded and the folded graph are equal in real arithmetic.

A fold moves maps past activations, pools and branches, so that a value of the same name may mean another number in the
folded graph. Which ones still mean the same is found by carrying the plan out in float64, nothing rounded to float32,
and running both graphs on a few inputs: values that agree to TOLERANCE are one point. What the planner believes plays
no part in it; a plan that is not exact shows as an output that is no point.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.folding import algebra
from bnfold.folding.edits import Edit
from bnfold.folding.expressions import Array, Expr
from bnfold.folding.onnx_edits import replay
from bnfold.folding.onnx_file import to_proto
from bnfold.parity.oracle import run_values

F64 = np.ndarray[Any, np.dtype[np.float64]]

# Of the largest element: far above what float64 loses on the way (1e-13 in 152 layers), far below the mildest wrong
# fold (an epsilon of 1e-5 that is dropped changes a scale by 5e-6).
TOLERANCE = 1e-9
# The same for each channel, of its own largest element: a shift of 1 is nothing beside another channel of 1e10. What is
# below this part of the largest element of all is what float64 loses, and says nothing (a dead channel, say).
_NOISE = 1e-12
_GLANCE = 64  # elements


@dataclass(frozen=True)
class Points:
    """Where two graphs agree. same: names in the folded graph -> names in the reference, in the folded graph's order.

    apart: outputs of the network that do not agree, and by how much relative to their size.
    """

    same: Mapping[str, str]
    apart: Mapping[str, float]


def exact_points(reference: ir.Model, edits: Sequence[Edit], feeds: Sequence[Mapping[str, Array]]) -> Points:
    """Run the reference and its exact fold in float64 and see where they agree on every one of some inputs.

    Raises ParityError when a graph has no float64 meaning, or cannot be evaluated.
    """
    exact, _ = replay(reference, edits, _unrounded)
    before, after = to_proto(reference), to_proto(exact)
    old, new = written(before), written(after)
    gone = [name for name in old if name not in new]
    outputs = [value.name for value in before.graph.output]  # which a fold must leave as they are
    same = {value.name: value.name for value in before.graph.input}
    candidates = {name: [name, *gone] if name in old else [*gone, *old] for name in new}
    for feed in feeds:
        left, right = run_values(before, feed, old), run_values(after, feed, new)
        candidates = {name: [o for o in others if o in left] for name, others in candidates.items() if name in right}
        candidates = {
            name: [name]
            if name in outputs and name in others and _is_equal(left[name], right[name])
            else _equals(name, others, left, right[name])
            for name, others in candidates.items()
        }
    same |= {name: others[0] for name, others in candidates.items() if others}
    apart = {
        name: _distance(left[name], right[name])
        for name in outputs
        if same.get(name) != name and name in right and not _is_copy(left[name], right[name])
    }
    return Points(same, apart)


def _unrounded(expr: Expr, _: str) -> Array:
    """The values of an expression in float64, within its last bits."""
    return np.asarray(algebra.evaluate(expr).hi, np.float64)


def written(model: onnx.ModelProto) -> list[str]:
    """Every value that a node of the main graph writes, in order."""
    return [name for node in model.graph.node for name in node.output if name]


def _equals(name: str, others: Sequence[str], left: Mapping[str, Array], right: Array) -> list[str]:
    """Those of some values that equal one of the folded graph; the one of the same name alone, if it does."""
    if name in others and _is_same(left[name], right):
        return [name]
    return [other for other in others if other != name and _is_same(left[other], right)]


def _is_same(left: Array, right: Array) -> bool:
    """Equal as a whole, and channel by channel, on whichever axis the channels are."""
    return _is_equal(left, right) and all(_is_equal_along(left, right, axis) for axis in {1, left.ndim - 1})


def _is_copy(left: Array, right: Array) -> bool:
    """Whether values that are no floats, and so no points, are the same: an output may count, or say yes and no."""
    return left.dtype.kind != "f" and np.array_equal(left, right)


def _is_equal(left: Array, right: Array) -> bool:
    if left.shape != right.shape or left.dtype.kind != "f" or right.dtype.kind != "f":
        return False
    step = max(1, left.size // _GLANCE)  # most values differ everywhere: a glance saves going through them
    few = left.reshape(-1)[::step], right.reshape(-1)[::step]
    scale = float(np.nanmax(np.abs(left), initial=0.0))
    with np.errstate(all="ignore"):
        if np.any(np.abs(few[0] - few[1]) > TOLERANCE * scale):
            return False
    return _distance(left, right) <= TOLERANCE


def _is_equal_along(left: Array, right: Array, axis: int) -> bool:
    """Each slice of an axis that may hold the channels, of its own size."""
    if not 0 < axis < left.ndim or not left.size:
        return True
    rest = tuple(at for at in range(left.ndim) if at != axis)
    with np.errstate(all="ignore"):
        difference = np.abs(left - right)
        difference, size = (np.where(np.isfinite(part), part, 0.0) for part in (difference, np.abs(left)))
    return bool(np.all(difference.max(rest) <= np.maximum(TOLERANCE * size.max(rest), _NOISE * size.max())))


def _distance(left: Array, right: Array) -> float:
    """The largest difference relative to the largest element; infinite where one is not finite and the other is."""
    if left.shape != right.shape:
        return np.inf
    if left.dtype.kind != "f":  # truth values have no difference, unsigned ones none below zero
        left, right = left.astype(np.float64), right.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return np.inf
    scale = float(np.abs(left[finite]).max(initial=0.0))
    difference = float(np.abs(left[finite] - right[finite]).max(initial=0.0))
    return difference / scale if scale else difference


def first_rows(batches: Iterable[Mapping[str, Array]], rows: int, *, is_free: bool) -> list[dict[str, Array]]:
    """The first rows of each batch; all of them where the batch size is fixed."""
    return [{name: array[: rows if is_free else None] for name, array in batch.items()} for batch in batches]
