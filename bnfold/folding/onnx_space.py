"""ONNX nodes that run over space -> rules: pooling, reductions, resizing, borders, pixel shuffle.

Source: ONNX AveragePool-7 to -22, MaxPool-8 to -22, ReduceMean-18, Upsample-7 and -9, Resize-10 to -19, Pad-2 to -25,
DepthToSpace-11, SpaceToDepth-28. Each gives None where an attribute or input is not understood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from bnfold.folding.carriers import Pad, Pool, Resize, Rule, Shuffle
from bnfold.folding.onnx_attributes import integer, integers, number, numbers, text
from bnfold.folding.onnx_calls import Call, is_read
from bnfold.folding.onnx_windows import window_of

RuleOf: TypeAlias = Callable[[Call], Rule | None]


def pool(mode: Literal["max", "average"]) -> RuleOf:
    """AveragePool and MaxPool; the axes are counted by the kernel."""

    def rule(call: Call) -> Rule | None:
        node = call.node
        window = window_of(node, integers(node, "kernel_shape") or ())
        if window is None or call.rank not in (None, len(window.kernel) + 2):
            return None
        if integer(node, "storage_order", 0) not in (0, 1):
            return None
        return Pool(
            mode, tuple(range(2, len(window.kernel) + 2)), window,
            counts_padding=bool(integer(node, "count_include_pad", 0)),
            gives_indices=any(is_read(value) for value in node.outputs[1:]),
        )  # fmt: skip

    return rule


def over_all(mode: Literal["max", "average"]) -> RuleOf:
    """GlobalAveragePool and GlobalMaxPool."""

    def rule(call: Call) -> Rule | None:
        return None if call.rank is None or call.rank < 3 else Pool(mode, tuple(range(2, call.rank)))

    return rule


def reduction(mode: Literal["max", "average"], since: int) -> RuleOf:
    """ReduceMean and ReduceMax over some axes, not all; `since`: the opset from which on axes are an input."""

    def rule(call: Call) -> Rule | None:
        given = call.given(1, "axes", since)
        axes = call.axes(given) if given else None  # no axes: all of them, or none
        if not axes or len(axes) == call.rank:
            return None
        return Pool(mode, tuple(sorted(axes)), keepdims=bool(integer(call.node, "keepdims", 1)))

    return rule


def upsample(call: Call) -> Rule | None:
    """Upsample, and Resize-10: scales alone."""
    scales = numbers(call.node, "scales") if call.opset < 9 else call.constants.numbers(call.input(1))
    if text(call.node, "mode", "nearest") not in ("nearest", "linear") or scales is None or len(scales) != call.rank:
        return None
    return Resize(tuple(axis for axis, scale in enumerate(scales) if scale != 1))


_MODES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


def resize(call: Call) -> Rule | None:
    """Resize."""
    node, rank = call.node, call.rank
    if call.opset < 11:
        return upsample(call)
    given = integers(node, "axes")
    axes = call.axes(tuple(range(rank or 0)) if given is None else given)
    if rank is None or not axes or text(node, "mode", "nearest") not in ("nearest", "linear", "cubic"):
        return None
    where = text(node, "coordinate_transformation_mode", "half_pixel")
    if where == "tf_crop_and_resize":  # a region, which may be anywhere on any axis
        return Resize(tuple(sorted(axes)), True, number(node, "extrapolation_value", 0.0))
    if where not in _MODES:
        return None
    return Resize(tuple(sorted(axis for at, axis in enumerate(axes) if not _is_kept(call, at, axis, len(axes)))))


def _is_kept(call: Call, at: int, axis: int, count: int) -> bool:
    """True when an axis is certainly resized by 1, which leaves it as it is in each of the modes."""
    scales = call.constants.numbers(call.input(2))
    if scales:
        return len(scales) == count and scales[at] == 1
    if call.input(3) is None or text(call.node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    if call.input(2) is not None and scales is None:  # which of the two counts is decided at run time
        return False
    before, after = (shape[axis] if shape is not None else None for shape in (call.shape, call.after))
    return before is not None and before == after


_BORDERS: dict[str, Literal["constant", "reflect", "edge", "wrap"]] = {
    "constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap",
}  # fmt: skip


def pad(call: Call) -> Rule | None:
    """Pad with constant widths, none of which cuts off."""
    pads = call.given(1, "pads", 11)
    mode = _BORDERS.get(text(call.node, "mode", "constant"))
    axes: tuple[int, ...] | None = tuple(range(call.rank or 0))
    if call.input(3) is not None:
        given = call.constants.integers(call.input(3))
        axes = None if given is None else call.axes(given)
    if pads is None or mode is None or not axes or len(pads) != 2 * len(axes) or min(pads) < 0:
        return None
    value = number(call.node, "value", 0.0) if call.opset < 11 else 0.0
    if call.input(2) is not None and call.opset >= 11:
        found = call.constants.number(call.input(2))
        if found is None:
            return None
        value = found
    wide = sorted(axis for at, axis in enumerate(axes) if pads[at] or pads[len(axes) + at])
    return Pad(mode, tuple(wide), value if mode == "constant" else 0.0) if math.isfinite(value) else None


def shuffle(up: bool) -> RuleOf:
    """DepthToSpace (`up`) and SpaceToDepth."""

    def rule(call: Call) -> Rule | None:
        block, mode = integer(call.node, "blocksize", 0), text(call.node, "mode", "DCR")
        if block < 1 or mode not in ("DCR", "CRD") or call.rank not in (None, 4):
            return None
        return Shuffle(1, block * block, up=up, channel_first=mode == "CRD")

    return rule
