"""Faults that are no formula: a number, a channel or a layout of a tensor changed, a node of the graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.folding.edits import Edit, SetSlope

Array = np.ndarray[Any, np.dtype[Any]]


def one_ulp(w: Array) -> Array:
    """The last number one step up."""
    changed = w.copy()
    flat = changed.reshape(-1)
    if changed.dtype.kind != "f":  # bfloat16: the next bit pattern away from zero
        bits = flat.view(np.uint16)
        bits[-1] += 1
        return changed
    flat[-1] = np.nextafter(flat[-1], np.array(np.inf, w.dtype))
    return changed


def _with_nan(w: Array) -> Array:
    changed = w.copy()
    changed.reshape(-1)[0] = np.nan
    return changed


def _scaled(w: Array) -> Array:
    changed = w.copy()
    changed[-1] = (w[-1].astype(np.float64) * 1.0001).astype(w.dtype)
    return changed


def _negated(w: Array) -> Array:
    changed = w.copy()
    changed[0] = -w[0]
    return changed


def _exchanged(w: Array) -> Array:
    return w[[1, 0, *range(2, len(w))]] if len(w) > 1 else w


def _interleaved(w: Array) -> Array:
    groups = next((size for size in (2, 3, 5, 7) if len(w) % size == 0 and size < len(w)), 1)
    return w[np.arange(len(w)).reshape(groups, -1).T.reshape(-1)]


def _stale(w: Array) -> Array:
    """A factor of its own for each channel, as other statistics would give."""
    factors = np.linspace(0.9, 1.1, len(w)).reshape(-1, *(1,) * (w.ndim - 1))
    return (w.astype(np.float64) * factors).astype(w.dtype)


def _in_half(w: Array) -> Array:
    return w.astype(np.float16).astype(w.dtype)


def _transposed(w: Array) -> Array:
    return np.swapaxes(w, -1, -2) if w.ndim > 3 and w.shape[-1] == w.shape[-2] else w


def _flipped(w: Array) -> Array:
    return np.flip(w, tuple(range(2, w.ndim))) if w.ndim > 2 else w


def _ends_exchanged(w: Array) -> Array:
    return np.swapaxes(w, 0, 1) if w.ndim > 1 and w.shape[0] == w.shape[1] else w


ARRAYS: tuple[tuple[str, str, Callable[[Array], Array]], ...] = (
    ("ONE_ULP", "one value one ulp up", one_ulp),
    ("NOT_FINITE", "one value NaN", _with_nan),
    ("ZEROED", "zeros written", np.zeros_like),
    ("CHANNEL_SCALED", "one channel times 1.0001", _scaled),
    ("NEGATED", "one channel negated", _negated),
    ("CHANNELS_EXCHANGED", "two channels exchanged", _exchanged),
    ("CHANNELS_INTERLEAVED", "channels interleaved", _interleaved),
    ("STALE", "stale statistics: another factor for each channel", _stale),
    ("NARROW", "numbers through float16", _in_half),
    ("KERNEL_TRANSPOSED", "kernel transposed", _transposed),
    ("KERNEL_FLIPPED", "kernel turned over", _flipped),
    ("WEIGHT_TRANSPOSED", "input and output channels exchanged", _ends_exchanged),
)
"""Code, words, and what is done to an array; what an array has no room for leaves it as it is."""


Fault = tuple[str, str, str, Callable[[onnx.ModelProto], None]]  # code, words, what it is about, change


def graph_faults(model: onnx.ModelProto, edits: Sequence[Edit], made: Collection[str]) -> Iterator[Fault]:
    """What may be wrong with the nodes of a fold; once each. made: the names of its new tensors."""
    found: set[str] = set()
    for at, node in enumerate(model.graph.node):
        for code, words, change in _of_node(model, node, edits, made):
            if code not in found:
                found.add(code)
                yield code, words, node.output[0], lambda copy, at=at, change=change: change(copy, at)  # type: ignore[misc]
    other = next((t for t in model.graph.initializer if t.name not in made and _is_number(t)), None)
    if other is not None:
        yield "OTHER_TENSOR", "a tensor that no fold touches one ulp up", other.name, _spoilt(other.name)


def _of_node(
    model: onnx.ModelProto, node: onnx.NodeProto, edits: Sequence[Edit], made: Collection[str]
) -> Iterator[tuple[str, str, Callable[[onnx.ModelProto, int], None]]]:
    reads_new = any(name in made for name in node.input)
    pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [])
    if node.op_type == "Add" and reads_new:
        yield "ADDITION_LOST", "the addition behind it lost", _bypass
    if node.op_type == "Relu" and not any(node.output[0] == value.name for value in model.graph.output):
        yield "ACTIVATION_LOST", "an activation lost", _bypass
    if node.op_type == "BatchNormalization" and reads_new:
        yield "EPS_LEFT", "an epsilon in what is left of a norm", _with_epsilon
    if node.op_type == "Conv" and len(pads) == 4 and pads[0] == pads[2] > 0:
        yield "PADS_MOVED", "padding moved to one side", _with_pads
    slopes = [edit for edit in edits if isinstance(edit, SetSlope)]
    if node.op_type == "PRelu" and reads_new and slopes:
        alpha = float(getattr(slopes[0].carrier.rule, "slope", None) or 0.0)
        yield "SLOPE_LEFT", "the activation left with its old slope", lambda copy, at: _leaky(copy, at, alpha)


def _bypass(model: onnx.ModelProto, at: int) -> None:
    node = model.graph.node[at]
    stored = {item.name for item in model.graph.initializer}
    before, after = next(name for name in node.input if name not in stored), node.output[0]
    lost = {name for name in node.input if name in stored}
    del model.graph.node[at]
    for other in model.graph.node:
        other.input[:] = [before if name == after else name for name in other.input]
    if any(value.name == after for value in model.graph.output):
        for other in model.graph.node:
            other.output[:] = [after if name == before else name for name in other.output]
            other.input[:] = [after if name == before else name for name in other.input]
    used = {name for other in model.graph.node for name in other.input}
    kept = [item for item in model.graph.initializer if item.name not in lost or item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _with_epsilon(model: onnx.ModelProto, at: int) -> None:
    for attribute in model.graph.node[at].attribute:
        if attribute.name == "epsilon":
            attribute.f = 1e-5


def _with_pads(model: onnx.ModelProto, at: int) -> None:
    pads = next(a for a in model.graph.node[at].attribute if a.name == "pads")
    half = len(pads.ints) // 2
    pads.ints[:] = [0] * half + [begin + end for begin, end in zip(pads.ints[:half], pads.ints[half:], strict=True)]


def _leaky(model: onnx.ModelProto, at: int, alpha: float) -> None:
    node = model.graph.node[at]
    lost = node.input[1]
    node.CopyFrom(helper.make_node("LeakyRelu", [node.input[0]], list(node.output), name=node.name, alpha=alpha))
    kept = [item for item in model.graph.initializer if item.name != lost]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _is_number(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


def _spoilt(name: str) -> Callable[[onnx.ModelProto], None]:
    return lambda model: put(model, name, one_ulp(stored(model, name)))


def stored(model: onnx.ModelProto, name: str) -> Array:
    """A tensor of a model. Raises KeyError when it has none of that name."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return np.asarray(numpy_helper.to_array(tensor))
    raise KeyError(name)


def put(model: onnx.ModelProto, name: str, values: Array) -> None:
    """Other numbers for a tensor of a model. Raises KeyError when it has none of that name."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
            return
    raise KeyError(name)
