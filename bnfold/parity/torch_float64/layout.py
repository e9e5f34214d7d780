"""Shapes and places: what moves numbers without changing them. By the ONNX operator specifications."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from bnfold.parity.torch_float64.calls import Call, Inputs, Tensor, at, axes_of, need, whole


def _reshape(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    given = call.get("shape")
    wanted = [int(size) for size in given] if given is not None else whole(need(inputs, 1))
    if not call.get("allowzero"):
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(call: Call, inputs: Inputs) -> Tensor:
    x, axis = need(inputs, 0), call.get("axis")
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    axes = axes_of(call, inputs, 1)
    chosen = tuple(axes) if axes is not None else tuple(place for place, size in enumerate(x.shape) if size == 1)
    return x.squeeze(chosen)


def _unsqueeze(call: Call, inputs: Inputs) -> Tensor:
    x, axes = need(inputs, 0), axes_of(call, inputs, 1) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _transpose(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    return x.permute(list(call.get("perm") or reversed(range(x.ndim))))


def _concat(call: Call, inputs: Inputs) -> Tensor:
    return torch.cat([need(inputs, place) for place in range(len(inputs))], call.get("axis", 1))


def _split(call: Call, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axis = need(inputs, 0), call.get("axis")
    given, sizes = at(inputs, 1), call.get("split")
    if given is not None:
        sizes = whole(given)
    if sizes is None:
        parts, total = len(call.outputs), x.shape[axis]
        size = math.ceil(total / parts)
        sizes = [min(size, total - size * part) for part in range(parts)]
    return tuple(torch.split(x, [int(size) for size in sizes], axis))


def _slice(call: Call, inputs: Inputs) -> Tensor:
    """Slice-1 has its places as attributes, Slice-10 as inputs; steps may be negative."""
    x = need(inputs, 0)
    if call.opset < 10:
        starts, ends, axes = call.get("starts"), call.get("ends"), call.get("axes")
        steps = [1] * len(starts)
    else:
        starts, ends = whole(need(inputs, 1)), whole(need(inputs, 2))
        given, by = at(inputs, 3), at(inputs, 4)
        axes = None if given is None else whole(given)
        steps = [1] * len(starts) if by is None else whole(by)
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def _gather(call: Call, inputs: Inputs) -> Tensor:
    x, index = need(inputs, 0), need(inputs, 1).to(torch.int64)
    axis = call.get("axis") % x.ndim
    flat = torch.where(index < 0, index + x.shape[axis], index).reshape(-1)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _expand(_: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    wanted = np.broadcast_shapes(tuple(x.shape), tuple(whole(need(inputs, 1))))
    return x.expand(wanted)


def _tile(_: Call, inputs: Inputs) -> Tensor:
    return need(inputs, 0).repeat(whole(need(inputs, 1)))


def _pad(call: Call, inputs: Inputs) -> Tensor:
    """Pad-2 has its pads as an attribute, Pad-11 as an input, Pad-18 for some axes."""
    x = need(inputs, 0)
    given = call.get("pads")
    pads = [int(amount) for amount in given] if given is not None else whole(need(inputs, 1))
    some = at(inputs, 3)
    axes = [axis % x.ndim for axis in whole(some)] if some is not None else list(range(x.ndim))
    half = len(pads) // 2
    amounts = {axis: (pads[place], pads[half + place]) for place, axis in enumerate(axes)}
    mode = call.get("mode")
    if mode == "constant":
        value = at(inputs, 2)
        fill = float(call.get("value") or 0) if value is None else float(value)
        every = [amounts.get(axis, (0, 0)) for axis in reversed(range(x.ndim))]
        return functional.pad(x, [amount for pair in every for amount in pair], value=fill)
    for axis, (before, after) in amounts.items():
        size = x.shape[axis]
        places = np.arange(max(0, -before), size - max(0, -after))
        places = np.pad(places, (max(0, before), max(0, after)), mode=mode)  # numpy has the names of ONNX
        x = x.index_select(axis, torch.from_numpy(places))
    return x


def _shape(call: Call, inputs: Inputs) -> Tensor:
    sizes = list(need(inputs, 0).shape)
    return torch.tensor(sizes[call.get("start") or 0 : call.get("end")], dtype=torch.int64)


def _size(_: Call, inputs: Inputs) -> Tensor:
    return torch.tensor(need(inputs, 0).numel(), dtype=torch.int64)


def _constant(call: Call, _: Inputs) -> Tensor:
    for name, dtype in (("value_float", call.dtype), ("value_floats", call.dtype)):
        if call.get(name) is not None:
            return torch.tensor(call.get(name), dtype=dtype)
    for name in ("value_int", "value_ints"):
        if call.get(name) is not None:
            return torch.tensor(call.get(name), dtype=torch.int64)
    value = call.get("value")
    if not isinstance(value, Tensor):
        raise call.refuse("is no tensor of numbers")
    return value


def _constant_of_shape(call: Call, inputs: Inputs) -> Tensor:
    value = call.get("value")
    filler = torch.zeros(1, dtype=call.dtype) if value is None else value
    return filler.reshape(()).expand(whole(need(inputs, 0))).clone()


def _range(_: Call, inputs: Inputs) -> Tensor:
    start, limit, delta = (need(inputs, place) for place in range(3))
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _depth_to_space(call: Call, inputs: Inputs) -> Tensor:
    x, block = need(inputs, 0), call.get("blocksize")
    rows, channels, height, width = x.shape
    if call.get("mode", "DCR") == "DCR":
        x = x.reshape(rows, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(rows, channels // block**2, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(rows, channels // block**2, height * block, width * block)


def _space_to_depth(call: Call, inputs: Inputs) -> Tensor:
    x, block = need(inputs, 0), call.get("blocksize")
    rows, channels, height, width = x.shape
    x = x.reshape(rows, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(rows, channels * block**2, height // block, width // block)


OPERATORS: dict[str, Callable[[Call, Inputs], Tensor | tuple[Tensor, ...]]] = {
    "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Transpose": _transpose,
    "Concat": _concat, "Split": _split, "Slice": _slice, "Gather": _gather, "Expand": _expand, "Tile": _tile,
    "Pad": _pad, "Shape": _shape, "Size": _size, "Constant": _constant, "ConstantOfShape": _constant_of_shape,
    "Range": _range, "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth,
}  # fmt: skip
