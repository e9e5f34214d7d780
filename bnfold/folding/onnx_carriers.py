"""Single ONNX nodes -> carriers, by the operator specifications from opset 7 on.

One function a kind, chosen by the operator's name; it gives None where an attribute or an input is not understood,
and the node is opaque then. Axes are counted from the front. Inputs that are no data (slopes, borders, indices) are
constants, or integers that come from shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnfold.folding import onnx_space as space
from bnfold.folding.carriers import Activation, Concat, Reshape, Rule, Select, Split, Sum, Transpose
from bnfold.folding.onnx_attributes import integer, integers, is_understood, number, text
from bnfold.folding.onnx_calls import Call, is_read, shape_of_value
from bnfold.folding.onnx_constants import FLOATS, Constants
from bnfold.folding.onnx_space import RuleOf

_LEAKY_SLOPE = float(np.float32(0.01))  # the default of LeakyRelu-6, a float32 attribute
_WHOLE = 2**31 - 1  # Slice-10: any larger number, too, means the end of an axis of unknown size


@dataclass(frozen=True)
class Stated:
    """What a node is as a carrier: its data inputs, its outputs, its rule."""

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    rule: Rule


def carrier(node: ir.Node, constants: Constants, opset: int) -> Stated | None:
    """What is known of a node of the standard operator set as a carrier, None for anything else."""
    if node.op_type not in _RULES:
        return None
    rule_of, names = _RULES[node.op_type]
    if not is_understood(node, opset, names) or not node.inputs or not node.outputs:
        return None
    takes_all = node.op_type in ("Concat", "Sum", "Add", "Sub")
    data = [value for value in (node.inputs if takes_all else node.inputs[:1]) if value is not None]
    if not data or (takes_all and len(data) != len(node.inputs)):
        return None
    dtype = node.outputs[0].dtype
    if dtype not in FLOATS or not all(value.dtype == dtype and constants.get(value) is None for value in data):
        return None
    if not all(_is_harmless(value, constants) for value in node.inputs[1:] if not takes_all):
        return None
    outputs = node.outputs if node.op_type == "Split" else [node.outputs[0], *filter(is_read, node.outputs[1:])]
    rule = rule_of(Call(node, opset, constants)) if all(value.name for value in outputs) else None
    return None if rule is None else Stated(tuple(data), tuple(outputs), rule)


def _is_harmless(value: ir.Value | None, constants: Constants) -> bool:
    """True for an input that is no data: left out, a constant, or integers (which no affine map touches)."""
    return value is None or constants.get(value) is not None or value.dtype in (ir.DataType.INT64, ir.DataType.INT32)


# Elementwise


def _function(name: str) -> RuleOf:
    return lambda _: Activation(name)


def _leaky_relu(call: Call) -> Rule | None:
    slope = number(call.node, "alpha", _LEAKY_SLOPE)
    return Activation("leaky_relu", slope) if math.isfinite(slope) else None


def _prelu(call: Call) -> Rule | None:
    return Activation("prelu") if call.constants.get(call.input(1)) is not None else None


def _elu(call: Call) -> Rule | None:
    return Activation("elu") if 0 < number(call.node, "alpha", 1.0) < math.inf else None


def _gelu(call: Call) -> Rule | None:
    return Activation("gelu") if text(call.node, "approximate", "none") in ("none", "tanh") else None


def _swish(call: Call) -> Rule | None:
    return Activation("silu") if number(call.node, "alpha", 1.0) == 1 else None


def _clip(call: Call) -> Rule | None:
    low, high = _bound(call, 1, "min", -math.inf), _bound(call, 2, "max", math.inf)
    if low != 0 or high is None or call.data.dtype is None:
        return None
    if high >= _MAX[FLOATS[call.data.dtype]]:
        return Activation("relu")
    return Activation("relu6") if high == 6 else None


def _bound(call: Call, index: int, name: str, otherwise: float) -> float | None:
    """A bound of Clip: an input from opset 11 on, None where it is computed; an attribute of float32 before."""
    if call.opset < 11:
        return number(call.node, name, math.copysign(_MAX["float32"], otherwise))
    value = call.input(index)
    return otherwise if value is None else call.constants.number(value)


_MAX = {
    "float16": 65504.0,
    "bfloat16": float(np.float32(3.3895314e38)),
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}


def _sum(call: Call) -> Rule | None:
    count = len(call.node.inputs)
    if call.node.op_type == "Sum":
        return Sum((1,) * count) if count > 1 else None
    return Sum((1, -1 if call.node.op_type == "Sub" else 1)) if count == 2 else None


def _concat(call: Call) -> Rule | None:
    axis = call.axis(0) if "axis" in call.node.attributes else None
    ranks = {None if value is None else len(shape_of_value(value) or ()) for value in call.node.inputs}
    return Concat(axis) if axis is not None and ranks == {call.rank} else None


# Axes


def _reshape(call: Call) -> Rule | None:
    return Reshape() if call.shape is not None and call.after is not None else None


def _transpose(call: Call) -> Rule | None:
    perm = integers(call.node, "perm")
    if perm is None and call.rank is not None:
        perm = tuple(reversed(range(call.rank)))
    if perm is None or sorted(perm) != list(range(len(perm))) or call.rank not in (None, len(perm)):
        return None
    return Transpose(perm)


# Parts


def _slice(call: Call) -> Rule | None:
    starts, ends = call.given(1, "starts", 10), call.given(2, "ends", 10)
    axes, steps = call.given(3, "axes", 10), call.given(4, "steps", 10)
    if (axes is None and call.input(3) is not None) or len(call.node.inputs) > 5:
        return None
    given = axes if axes is not None else tuple(range(len(starts or ends or ())))
    found = call.axes(given) if given else None
    if found is None:
        return None
    if steps is None and call.input(4) is None:
        steps = (1,) * len(found)
    parts: list[tuple[int, tuple[int, ...] | None]] = []
    for at, axis in enumerate(found):
        if starts is None or ends is None or steps is None:
            parts.append((axis, None))
            continue
        if not len(starts) == len(ends) == len(steps) == len(found) or steps[at] == 0:
            return None
        if (starts[at], steps[at]) == (0, 1) and ends[at] >= _WHOLE:
            continue
        indices = _sliced(call.size(axis), starts[at], ends[at], steps[at])
        if indices == ():
            return None
        parts.append((axis, indices))
    return Select(tuple(sorted(parts, key=lambda part: part[0])))


def _sliced(size: int | None, start: int, end: int, step: int) -> tuple[int, ...] | None:
    """The indices that a slice takes of an axis, None where its size is not known."""
    if size is None:
        return None
    # As Python's: negative ones count from the end, then both are clamped; for a negative step, -1 is before the front.
    stop = None if step < 0 and end < -size else end
    return tuple(range(size)[start:stop:step])


def _gather(call: Call) -> Rule | None:
    axis, indices = call.axis(0), call.constants.indices(call.input(1))
    size = None if axis is None else call.size(axis)
    if axis is None or not indices:
        return None
    if size is None:
        return Select(((axis, None),))
    if not all(-size <= at < size for at in indices):
        return None
    return Select(((axis, tuple(at % size for at in indices)),))


def _split(call: Call) -> Rule | None:
    axis, count = call.axis(0), len(call.node.outputs)
    if axis is None or integer(call.node, "num_outputs", count) != count:
        return None
    size, sizes = call.size(axis), call.given(1, "split", 13)
    if sizes is None and call.input(1) is not None:
        return None
    if sizes is None and size is not None:
        if call.opset < 18 and size % count:
            return None
        part = -(-size // count)  # Split-18: the last one is smaller where the size is no multiple
        sizes = (*(part,) * (count - 1), size - part * (count - 1))
    if sizes is None or len(sizes) != count or min(sizes) < 1 or (size is not None and sum(sizes) != size):
        return None
    return Split(axis, sizes)


_WINDOW = ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode", "dilations")
_RESIZE = (
    "mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside",
    "extrapolation_value", "antialias", "axes", "keep_aspect_ratio_policy",
)  # fmt: skip

_RULES: dict[str, tuple[RuleOf, tuple[str, ...]]] = {
    "Relu": (_function("relu"), ()),
    "HardSwish": (_function("hardswish"), ()),
    "Mish": (_function("mish"), ()),
    "LeakyRelu": (_leaky_relu, ("alpha",)),
    "PRelu": (_prelu, ()),
    "Elu": (_elu, ("alpha",)),
    "Gelu": (_gelu, ("approximate",)),
    "Swish": (_swish, ("alpha",)),
    "Clip": (_clip, ("min", "max")),
    **dict.fromkeys(("Add", "Sub", "Sum"), (_sum, ())),
    "Concat": (_concat, ("axis",)),
    "MaxPool": (space.pool("max"), (*_WINDOW, "storage_order")),
    "AveragePool": (space.pool("average"), (*_WINDOW, "count_include_pad")),
    "GlobalAveragePool": (space.over_all("average"), ()),
    "GlobalMaxPool": (space.over_all("max"), ()),
    "ReduceMean": (space.reduction("average", 18), ("axes", "keepdims", "noop_with_empty_axes")),
    "ReduceMax": (space.reduction("max", 18), ("axes", "keepdims", "noop_with_empty_axes")),
    "Upsample": (space.upsample, ("mode", "scales")),
    "Resize": (space.resize, _RESIZE),
    "Pad": (space.pad, ("mode", "pads", "value")),
    "DepthToSpace": (space.shuffle(True), ("blocksize", "mode")),
    "SpaceToDepth": (space.shuffle(False), ("blocksize", "mode")),
    "Reshape": (_reshape, ("allowzero",)),
    "Flatten": (_reshape, ("axis",)),
    "Squeeze": (_reshape, ("axes",)),
    "Unsqueeze": (_reshape, ("axes",)),
    "Transpose": (_transpose, ("perm",)),
    "Slice": (_slice, ("starts", "ends", "axes")),
    "Gather": (_gather, ("axis",)),
    "Split": (_split, ("axis", "split", "num_outputs")),
}
