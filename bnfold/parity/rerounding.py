"""How far a right fold may be off by luck: the folded model with its numbers rounded once more.

The yardstick of T3 is the unfolded network's own error. On a thousand samples it is a sound one; on zeros, on one
impulse or on an input that was searched for it is a few numbers, and may be next to nothing by luck. Another yardstick
holds on any input, whether the fold is right or wrong: move every number that the folded model computes with by one
unit in the last place, up or down at random, and see how far the outputs go. A number that is the nearest is off by
0.29 such units in the root mean square and by 0.5 at most, so rounding the weights moves a right fold by less than
that; and each such model rounds its own way through every sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bnfold.parity.hard_rule import VARIANTS
from bnfold.parity.weights.exact import FORMATS
from bnfold.runtime import Device, open_session, run

Array = np.ndarray[Any, np.dtype[Any]]


# Operators whose constants are factors or terms; elsewhere they may be limits, sizes or places.
_COMPUTING = frozenset(
    {"Add", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Gemm", "MatMul", "Mul", "PRelu", "Sub"}
)


_OF_LARGE, _LARGE = 3, 1 << 22  # copies of a model with more numbers than that in its initialisers


def copies_of(folded: onnx.ModelProto) -> int:
    """How many re-rounded copies are asked: of a large model fewer, since each is opened anew."""
    return _OF_LARGE if sum(math.prod(t.dims) for t in folded.graph.initializer) > _LARGE else VARIANTS


def rerounded(folded: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The folded model with its weights and other factors and terms one ulp up or down; zeros stay.

    Its tensors must be in it, not beside it.
    """
    clone = onnx.ModelProto()
    clone.CopyFrom(folded)
    chosen = computed_with(folded)
    rng = np.random.default_rng(seed)
    for tensor in clone.graph.initializer:
        array = numpy_helper.to_array(tensor) if tensor.name in chosen else None
        if array is not None and array.dtype.name in FORMATS:
            tensor.CopyFrom(numpy_helper.from_array(one_ulp_off(array, rng), tensor.name))
    return clone


def computed_with(model: onnx.ModelProto) -> frozenset[str]:
    """Names of what operators multiply or add."""
    return frozenset(name for node in model.graph.node if node.op_type in _COMPUTING for name in node.input)


def one_ulp_off(array: Array, rng: np.random.Generator) -> Array:
    """Every number the next one up or down, by the toss of a coin; zeros and what is not finite stay."""
    toward = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(array.dtype)
    moved = np.nextafter(array, toward)
    return np.where((array == 0) | ~np.isfinite(moved), array, moved).astype(array.dtype)


def answers_of_copies(
    folded: onnx.ModelProto, batches: Sequence[Mapping[str, Array]], *, device: Device = "cpu", threads: int = 1
) -> Iterator[list[dict[str, Array]]]:
    """What each re-rounded copy answers to some batches, run as the folded model is served."""
    for seed in range(copies_of(folded)):
        copy = rerounded(folded, seed).SerializeToString()
        session = open_session(copy, optimise=True, device=device, threads=threads)
        yield [run(session, batch) for batch in batches]
