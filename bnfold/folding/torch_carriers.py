"""Single nodes of an exported program -> carriers, by the schemas of ATen.

One function a kind, chosen by the full name of the overload; it gives None where an argument is not understood, and
the node is opaque then. Axes are counted from the front.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch.fx import Node

from bnfold.folding.carriers import (
    Activation,
    Concat,
    Pad,
    Pool,
    Reshape,
    Resize,
    Rule,
    Select,
    Shuffle,
    Split,
    Sum,
    Transpose,
    Window,
)
from bnfold.folding.torch_constants import Constants
from bnfold.folding.torch_nodes import arguments
from bnfold.folding.torch_tensors import FLOATS, dimensions, fixed_size, integers


@dataclass(frozen=True)
class Call:
    """An operator with its arguments by name, and the fake values of its first data input and first output."""

    node: Node
    args: dict[str, Any]
    before: torch.Tensor
    after: torch.Tensor
    constants: Constants

    @property
    def rank(self) -> int:
        """The rank of the first data input."""
        return self.before.ndim

    def axis(self, given: Any) -> int | None:
        """An axis of the first data input, counted from the front; None where it is no number."""
        if isinstance(given, bool) or not isinstance(given, int) or not -self.rank <= given < self.rank:
            return None
        return given % self.rank

    def axes(self, given: Any) -> tuple[int, ...] | None:
        """Several axes, from the front and in order."""
        found = [self.axis(value) for value in (given if isinstance(given, list | tuple) else [given])]
        axes = sorted(axis for axis in found if axis is not None)
        return tuple(axes) if len(set(axes)) == len(found) else None

    def size(self, axis: int) -> int | None:
        """A size of the first data input, None where it is free."""
        return fixed_size(self.before.shape[axis])


_Rule: TypeAlias = Callable[[Call], Rule | None]


@dataclass(frozen=True)
class Stated:
    """What a node is as a carrier: the nodes of its data inputs, and its rule."""

    inputs: tuple[Node, ...]
    rule: Rule


def carrier(node: Node, constants: Constants) -> Stated | None:
    """What is known of a node as a carrier, None for anything else."""
    rule_of = _RULES.get(str(node.target))
    if rule_of is None:
        return None
    args = arguments(node)
    data = _data(args)
    values = [item.meta.get("val") if isinstance(item, Node) else None for item in data]
    outputs = node.meta.get("val")
    after = outputs[0] if isinstance(outputs, list | tuple) and outputs else outputs
    if not data or not isinstance(after, torch.Tensor) or after.dtype not in FLOATS or 0 in dimensions(after):
        return None
    if not all(isinstance(value, torch.Tensor) and value.dtype == after.dtype for value in values):
        return None
    if any(constants.get(item) is not None for item in data):
        return None
    # Whatever else it reads is a constant, or a size.
    others = [item for item in node.all_input_nodes if item not in data and constants.get(item) is None]
    if any(isinstance(item.meta.get("val"), torch.Tensor) and not _is_pattern(item, args) for item in others):
        return None
    rule = rule_of(Call(node, args, values[0], after, constants))  # type: ignore[arg-type]
    return None if rule is None else Stated(tuple(data), rule)


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


def _data(args: dict[str, Any]) -> list[Any]:
    """The data inputs: two of a sum, all of a concatenation, otherwise the first argument."""
    first = next(iter(args.values()))
    if isinstance(first, list | tuple):
        return list(first)
    is_sum = {"self", "other", "alpha"} == set(args)
    return [first, args["other"]] if is_sum else [first]


def _is_pattern(item: Node, args: dict[str, Any]) -> bool:
    """True for the tensor whose shape `view_as` takes, where nothing ever changes that: an input of the graph."""
    return item is args.get("other") and item.op == "placeholder" and "alpha" not in args


# Elementwise


def _function(name: str) -> _Rule:
    return lambda _: Activation(name)


def _leaky_relu(call: Call) -> Rule | None:
    slope = call.args["negative_slope"]
    return Activation("leaky_relu", float(slope)) if _is_number(slope) else None


def _prelu(call: Call) -> Rule | None:
    return Activation("prelu") if call.constants.get(call.args["weight"]) is not None else None


def _elu(call: Call) -> Rule | None:
    alpha = call.args["alpha"]
    is_plain = call.args["scale"] == 1 and call.args["input_scale"] == 1
    return Activation("elu") if is_plain and _is_number(alpha) and alpha > 0 else None


def _clamp(call: Call) -> Rule | None:
    low = call.args["min_val"] if "min_val" in call.args else call.args["min"]
    high = call.args["max_val"] if "max_val" in call.args else call.args.get("max")
    if isinstance(low, bool) or low != 0:
        return None
    if high is None:
        return Activation("relu")
    return Activation("relu6") if high == 6 else None


def _sum(sign: Literal[1, -1]) -> _Rule:
    return lambda call: Sum((1, sign)) if call.args["alpha"] == 1 and _is_number(call.args["alpha"]) else None


def _concat(call: Call) -> Rule | None:
    axis = call.axis(call.args["dim"])
    ranks = {item.meta["val"].ndim for item in _data(call.args)}
    return Concat(axis) if axis is not None and ranks == {call.after.ndim} else None


# Pools


def _pool(mode: Literal["max", "average"], spatial: int) -> _Rule:
    def rule(call: Call) -> Rule | None:
        kernel = integers(call.args["kernel_size"], spatial)
        stride = integers(call.args["stride"] or call.args["kernel_size"], spatial)
        padding = integers(call.args["padding"], spatial)
        dilation = integers(call.args.get("dilation", 1), spatial)
        ceil = call.args["ceil_mode"]
        if kernel is None or stride is None or padding is None or dilation is None or not isinstance(ceil, bool):
            return None
        window = Window(kernel, stride, dilation, tuple((pad, pad) for pad in padding), ceil=ceil)
        return Pool(
            mode, _last(call, spatial), window,
            counts_padding=mode == "average" and bool(call.args["count_include_pad"]),
            has_divisor=call.args.get("divisor_override") is not None,
            gives_indices=mode == "max" and _gives_second(call.node),
        )  # fmt: skip

    return rule


def _adaptive(mode: Literal["max", "average"], spatial: int) -> _Rule:
    def rule(call: Call) -> Rule | None:
        return Pool(mode, _last(call, spatial), gives_indices=mode == "max" and _gives_second(call.node))

    return rule


def _reduction(mode: Literal["max", "average"]) -> _Rule:
    def rule(call: Call) -> Rule | None:
        axes = call.axes(call.args["dim"]) if call.args["dim"] is not None else None
        is_cast = call.args.get("dtype") not in (None, call.before.dtype)
        if not axes or len(axes) == call.rank or is_cast:
            return None
        return Pool(mode, axes, keepdims=bool(call.args["keepdim"]))

    return rule


def _gives_second(node: Node) -> bool:
    """True when somebody reads the second item of a tuple, or the tuple itself."""
    return any(user.args[1:] != (0,) and (user.users or user.op == "output") for user in node.users) and isinstance(
        node.meta.get("val"), list | tuple
    )


# Space


def _resize(spatial: int) -> _Rule:
    def rule(call: Call) -> Rule | None:
        axes = _last(call, spatial)
        names = ("scale_factors", "scales", "scales_d", "scales_h", "scales_w")
        factors: list[Any] = []
        for value in (call.args.get(name) for name in names):
            factors.extend(value if isinstance(value, list | tuple) else [value])
        if all(factor is None or factor == 1.0 for factor in factors):
            before, after = dimensions(call.before), dimensions(call.after)
            axes = tuple(axis for axis in axes if before[axis] != after[axis])
        return Resize(axes)

    return rule


_MODES: dict[str, Literal["constant", "reflect", "edge", "wrap"]] = {
    "constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap",
}  # fmt: skip


def _pad(mode: str | None) -> _Rule:
    def rule(call: Call) -> Rule | None:
        name = mode or str(call.args["mode"])
        pads = call.args["pad"] if "pad" in call.args else call.args["padding"]
        widths = integers(pads, len(pads)) if isinstance(pads, list | tuple) else None
        value = call.args.get("value")
        if name not in _MODES or widths is None or len(widths) % 2 or min(widths, default=0) < 0:
            return None
        if value is not None and not _is_number(value):
            return None
        count = len(widths) // 2  # from the last axis to the front
        axes = sorted(call.rank - 1 - at for at in range(count) if widths[2 * at] or widths[2 * at + 1])
        return Pad(_MODES[name], tuple(axes), float(value or 0.0) if name == "constant" else 0.0)

    return rule


def _shuffle(up: bool) -> _Rule:
    def rule(call: Call) -> Rule | None:
        factor = call.args["upscale_factor"] if up else call.args["downscale_factor"]
        if call.rank < 3 or isinstance(factor, bool) or not isinstance(factor, int):
            return None
        return Shuffle(call.rank - 3, factor * factor, up=up, channel_first=True)

    return rule


# Axes


def _reshape(_: Call) -> Rule | None:
    return Reshape()


def _permute(call: Call) -> Rule | None:
    given = [call.axis(axis) for axis in call.args["dims"]]
    perm = tuple(axis for axis in given if axis is not None)
    return Transpose(perm) if sorted(perm) == list(range(call.rank)) else None


def _swap(one: int | str, other: int | str) -> _Rule:
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


def _last(call: Call, count: int) -> tuple[int, ...]:
    return tuple(range(call.rank - count, call.rank))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_SPATIAL = (1, 2, 3)

_RULES: dict[str, _Rule] = {
    **{f"aten.{name}.default": _function(name) for name in ("relu", "relu6", "silu", "gelu", "mish", "hardswish")},
    "aten.leaky_relu.default": _leaky_relu,
    "aten.prelu.default": _prelu,
    "aten._prelu_kernel.default": _prelu,
    "aten.elu.default": _elu,
    **dict.fromkeys(("aten.hardtanh.default", "aten.clamp.default", "aten.clamp_min.default"), _clamp),
    "aten.add.Tensor": _sum(1),
    "aten.sub.Tensor": _sum(-1),
    **dict.fromkeys(("aten.cat.default", "aten.concat.default", "aten.concatenate.default"), _concat),
    **{f"aten.max_pool{n}d{kind}.default": _pool("max", n) for n in _SPATIAL for kind in ("", "_with_indices")},
    **{f"aten.avg_pool{n}d.default": _pool("average", n) for n in _SPATIAL},
    **{f"aten.adaptive_max_pool{n}d.default": _adaptive("max", n) for n in _SPATIAL},
    **{f"aten.{kind}adaptive_avg_pool{n}d.default": _adaptive("average", n) for n in _SPATIAL for kind in ("", "_")},
    "aten.mean.dim": _reduction("average"),
    "aten.amax.default": _reduction("max"),
    **{
        f"aten.{name}.{kind}": _resize(int(re.sub(r"\D", "", name)))
        for name in (
            "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
            "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
            "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
        )
        for kind in ("default", "vec")
    },
    "aten.constant_pad_nd.default": _pad("constant"),
    "aten.pad.default": _pad(None),
    "aten._pad_circular.default": _pad("circular"),
    **{f"aten.reflection_pad{n}d.default": _pad("reflect") for n in _SPATIAL},
    **{f"aten.replication_pad{n}d.default": _pad("replicate") for n in _SPATIAL},
    "aten.pixel_shuffle.default": _shuffle(True),
    "aten.pixel_unshuffle.default": _shuffle(False),
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
