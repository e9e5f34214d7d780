"""Operators that move data and compute nothing, as carriers: shapes, axes, parts.

Schemas: aten/src/ATen/native/native_functions.yaml of PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from bnfold.folding.carriers import Reshape, Rule, Select, Split, Transpose
from bnfold.folding.torch_call import Call, RuleOf
from bnfold.folding.torch_nodes import arguments
from bnfold.folding.torch_tensors import fixed_size


def is_whole(node: Node) -> bool:
    """True for a slice that takes everything, as indexing with `:` writes it."""
    if str(node.target) != "aten.slice.Tensor" or not isinstance(node.args[0], Node):
        return False
    args = arguments(node)
    value = node.args[0].meta.get("val")
    end = args["end"]
    if not isinstance(value, torch.Tensor) or args["start"] not in (0, None) or args["step"] != 1:
        return False
    if isinstance(end, Node):
        return False
    size = fixed_size(value.shape[args["dim"]])
    return end is None or end >= 2**62 or (size is not None and end >= size)


# Axes


def _reshape(_: Call) -> Rule | None:
    return Reshape()


def _permute(call: Call) -> Rule | None:
    given = [call.axis(axis) for axis in call.args["dims"]]
    perm = tuple(axis for axis in given if axis is not None)
    return Transpose(perm) if sorted(perm) == list(range(call.rank)) else None


def _swap(one: int | str, other: int | str) -> RuleOf:
    def rule(call: Call) -> Rule | None:
        first, second = (call.axis(call.args[at] if isinstance(at, str) else at) for at in (one, other))
        if first is None or second is None:
            return None if call.rank > 1 else Transpose(tuple(range(call.rank)))
        perm = list(range(call.rank))
        perm[first], perm[second] = perm[second], perm[first]
        return Transpose(tuple(perm))

    return rule


def _reverse(call: Call) -> Rule | None:
    return Transpose(tuple(reversed(range(call.rank))))


# Parts


def _slice(call: Call) -> Rule | None:
    axis = call.axis(call.args["dim"])
    if axis is None:
        return None
    size = call.size(axis)
    bounds = (call.args["start"], call.args["end"], call.args["step"])
    if size is None or not all(bound is None or isinstance(bound, int) for bound in bounds):
        return Select(((axis, None),))
    return Select(((axis, tuple(range(size)[slice(*bounds)])),))


def _narrow(call: Call) -> Rule | None:
    axis, start, length = call.axis(call.args["dim"]), call.args["start"], call.args["length"]
    size = None if axis is None else call.size(axis)
    if axis is None:
        return None
    if size is None or not isinstance(start, int) or not isinstance(length, int):
        return Select(((axis, None),))
    start += size if start < 0 else 0
    return Select(((axis, tuple(range(start, start + length))),))


def _index_select(call: Call) -> Rule | None:
    axis = call.axis(call.args["dim"])
    return None if axis is None else _taken(call, axis, call.args["index"])


def _index(call: Call) -> Rule | None:
    """x[:, [2, 0, 1]]: one axis by one constant vector."""
    given = [(axis, index) for axis, index in enumerate(call.args["indices"]) if index is not None]
    return _taken(call, *given[0]) if len(given) == 1 else None


def _taken(call: Call, axis: int, index: Any) -> Rule | None:
    size, indices = call.size(axis), call.constants.integers(index)
    if size is None or indices is None or not all(-size <= at < size for at in indices):
        return None
    return Select(((axis, tuple(at % size for at in indices)),))


def _flip(call: Call) -> Rule | None:
    axes = call.axes(call.args["dims"])
    if axes is None:
        return None
    sizes = [(axis, call.size(axis)) for axis in axes]
    return Select(tuple((axis, None if size is None else tuple(reversed(range(size)))) for axis, size in sizes))


def _channel_shuffle(call: Call) -> Rule | None:
    groups, size = call.args["groups"], call.size(1) if call.rank > 1 else None
    if size is None or not isinstance(groups, int) or size % groups:
        return None
    return Select(
        ((1, tuple(group * (size // groups) + at for at in range(size // groups) for group in range(groups))),)
    )


def _split(call: Call) -> Rule | None:
    axis = call.axis(call.args["dim"])
    if axis is None:
        return None
    sizes = [fixed_size(part.shape[axis]) for part in call.node.meta["val"]]
    known = tuple(size for size in sizes if size is not None)
    return Split(axis, known) if len(known) == len(sizes) and sum(known) == call.size(axis) else None


LAYOUT: dict[str, RuleOf] = {
    **dict.fromkeys(
        (
            "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints",
            "aten.unflatten.int", "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims",
            "aten.unsqueeze.default", "aten.view_as.default", "aten.reshape_as.default",
        ),
        _reshape,
    ),
    "aten.permute.default": _permute,
    "aten.transpose.int": _swap("dim0", "dim1"),
    "aten.swapdims.default": _swap("dim0", "dim1"),
    "aten.swapaxes.default": _swap("axis0", "axis1"),
    "aten.t.default": _swap(0, 1),
    "aten.mT.default": _swap(-2, -1),
    "aten.numpy_T.default": _reverse,
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": _narrow,
    "aten.index_select.default": _index_select,
    "aten.index.Tensor": _index,
    "aten.flip.default": _flip,
    "aten.channel_shuffle.default": _channel_shuffle,
    "aten.native_channel_shuffle.default": _channel_shuffle,
    **dict.fromkeys(
        ("aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default", "aten.chunk.default"), _split
    ),
}  # fmt: skip
