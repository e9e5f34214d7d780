"""Single nodes of an exported program -> carriers, by the schemas of ATen.

One function a kind, chosen by the full name of the overload; it gives None where an argument is not understood, and
the node is opaque then. Axes are counted from the front.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.fx import Node

from bnfold.folding.carriers import (
    Activation,
    Concat,
    Pad,
    Pool,
    Resize,
    Rule,
    Shuffle,
    Sum,
    Window,
)
from bnfold.folding.torch_call import Call, RuleOf, is_number
from bnfold.folding.torch_constants import Constants
from bnfold.folding.torch_layout import LAYOUT
from bnfold.folding.torch_nodes import arguments
from bnfold.folding.torch_tensors import FLOATS, dimensions, integers


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


def _function(name: str) -> RuleOf:
    return lambda _: Activation(name)


def _leaky_relu(call: Call) -> Rule | None:
    slope = call.args["negative_slope"]
    return Activation("leaky_relu", float(slope)) if is_number(slope) else None


def _prelu(call: Call) -> Rule | None:
    return Activation("prelu") if call.constants.get(call.args["weight"]) is not None else None


def _elu(call: Call) -> Rule | None:
    alpha = call.args["alpha"]
    is_plain = call.args["scale"] == 1 and call.args["input_scale"] == 1
    return Activation("elu") if is_plain and is_number(alpha) and alpha > 0 else None


def _clamp(call: Call) -> Rule | None:
    low = call.args["min_val"] if "min_val" in call.args else call.args["min"]
    high = call.args["max_val"] if "max_val" in call.args else call.args.get("max")
    if isinstance(low, bool) or low != 0:
        return None
    if high is None:
        return Activation("relu")
    return Activation("relu6") if high == 6 else None


def _sum(sign: Literal[1, -1]) -> RuleOf:
    return lambda call: Sum((1, sign)) if call.args["alpha"] == 1 and is_number(call.args["alpha"]) else None


def _concat(call: Call) -> Rule | None:
    axis = call.axis(call.args["dim"])
    ranks = {item.meta["val"].ndim for item in _data(call.args)}
    return Concat(axis) if axis is not None and ranks == {call.after.ndim} else None


# Pools


def _pool(mode: Literal["max", "average"], spatial: int) -> RuleOf:
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


def _adaptive(mode: Literal["max", "average"], spatial: int) -> RuleOf:
    def rule(call: Call) -> Rule | None:
        return Pool(mode, _last(call, spatial), gives_indices=mode == "max" and _gives_second(call.node))

    return rule


def _reduction(mode: Literal["max", "average"]) -> RuleOf:
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


def _resize(spatial: int) -> RuleOf:
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


def _pad(mode: str | None) -> RuleOf:
    def rule(call: Call) -> Rule | None:
        name = mode or str(call.args["mode"])
        pads = call.args["pad"] if "pad" in call.args else call.args["padding"]
        widths = integers(pads, len(pads)) if isinstance(pads, list | tuple) else None
        value = call.args.get("value")
        if name not in _MODES or widths is None or len(widths) % 2 or min(widths, default=0) < 0:
            return None
        if value is not None and not is_number(value):
            return None
        count = len(widths) // 2  # from the last axis to the front
        axes = sorted(call.rank - 1 - at for at in range(count) if widths[2 * at] or widths[2 * at + 1])
        return Pad(_MODES[name], tuple(axes), float(value or 0.0) if name == "constant" else 0.0)

    return rule


def _shuffle(up: bool) -> RuleOf:
    def rule(call: Call) -> Rule | None:
        factor = call.args["upscale_factor"] if up else call.args["downscale_factor"]
        if call.rank < 3 or isinstance(factor, bool) or not isinstance(factor, int):
            return None
        return Shuffle(call.rank - 3, factor * factor, up=up, channel_first=True)

    return rule


def _last(call: Call, count: int) -> tuple[int, ...]:
    return tuple(range(call.rank - count, call.rank))


_SPATIAL = (1, 2, 3)

_RULES: dict[str, RuleOf] = {
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
    **LAYOUT,
}  # fmt: skip
