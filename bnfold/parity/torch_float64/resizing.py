"""Resize-10 to -19 and Upsample-7 to -9, axis by axis: every output is a weighted sum of a few places of the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bnfold.parity.torch_float64.calls import Call, Inputs, Tensor, at, need, whole

F64 = np.ndarray[Any, np.dtype[np.float64]]
I64 = np.ndarray[Any, np.dtype[np.int64]]

_NEAREST: dict[str, Callable[[F64], F64]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _places(call: Call, size: int, outputs: int, scale: float) -> F64:
    """Where each output lies in the input (Resize-19, coordinate_transformation_mode)."""
    mode = (
        "asymmetric" if call.operator == "Upsample" or call.opset < 11 else call.get("coordinate_transformation_mode")
    )
    x = np.arange(outputs, dtype=np.float64)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * (size - 1) / (outputs - 1) if outputs > 1 else np.zeros(outputs)
    if mode == "pytorch_half_pixel" and outputs == 1:
        return np.zeros(1)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        adjusted = outputs / (scale * size)
        return size / 2 * (1 - adjusted) + (x + 0.5) / scale - 0.5
    raise call.refuse(f"has the coordinates {mode}")


def _taps(call: Call, places: F64, size: int) -> list[tuple[I64, F64]]:
    """Pairs of an index and a weight for each output; beyond the edges the edge counts, unless exclude_outside."""
    mode = call.get("mode")
    if mode == "nearest":
        nearest = "floor" if call.operator == "Upsample" or call.opset < 11 else call.get("nearest_mode")
        chosen = _NEAREST[nearest](places)
        return [(np.clip(chosen, 0, size - 1).astype(np.int64), np.ones_like(places))]
    base = np.floor(places)
    rest = places - base
    if mode in ("linear", "bilinear"):
        pairs = [(base, 1 - rest), (base + 1, rest)]
    elif mode == "cubic":
        weights = _cubic(rest, call.get("cubic_coeff_a"))
        pairs = [(base + offset, weight) for offset, weight in zip((-1, 0, 1, 2), weights, strict=True)]
    else:
        raise call.refuse(f"has the mode {mode}")
    if call.get("exclude_outside"):
        kept = [np.where((place >= 0) & (place < size), weight, 0.0) for place, weight in pairs]
        total = np.sum(kept, axis=0)
        pairs = [(place, weight / total) for (place, _), weight in zip(pairs, kept, strict=True)]
    return [(np.clip(place, 0, size - 1).astype(np.int64), weight) for place, weight in pairs]


def _cubic(t: F64, a: float) -> tuple[F64, F64, F64, F64]:
    """Weights of the four neighbours (Keys 1981, equation 4)."""
    return (
        ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
        ((a + 2) * t - (a + 3)) * t**2 + 1,
        ((a + 2) * (1 - t) - (a + 3)) * (1 - t) ** 2 + 1,
        ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
    )


def _along(call: Call, x: Tensor, axis: int, outputs: int, scale: float) -> Tensor:
    size = x.shape[axis]
    total: Tensor | None = None
    for index, weight in _taps(call, _places(call, size, outputs, scale), size):
        part = x.index_select(axis, torch.from_numpy(index))
        part = part * torch.from_numpy(weight).to(x.dtype).reshape(-1, *(1,) * (x.ndim - axis - 1))
        total = part if total is None else total + part
    return x if total is None else total


def _targets(call: Call, x: Tensor, inputs: Inputs) -> tuple[list[int], list[int], list[float]]:
    """(axes, sizes, scales)."""
    some: Sequence[int] | None = call.get("axes")
    axes = [axis % x.ndim for axis in some] if some else list(range(x.ndim))
    given = call.get("scales")
    if given is not None:
        scales = [float(scale) for scale in given]
    else:
        place = 2 if call.operator == "Resize" and call.opset >= 11 else 1
        tensor, sizes = at(inputs, place), at(inputs, 3)
        if sizes is not None and sizes.numel():
            if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
                raise call.refuse("keeps the aspect ratio")
            wanted = whole(sizes)
            return axes, wanted, [size / x.shape[axis] for size, axis in zip(wanted, axes, strict=True)]
        scales = [] if tensor is None else [float(scale) for scale in tensor.reshape(-1).tolist()]
    return axes, [math.floor(x.shape[axis] * scale) for axis, scale in zip(axes, scales, strict=True)], scales


def _resize(call: Call, inputs: Inputs) -> Tensor:
    if call.get("antialias"):
        raise call.refuse("has antialias")
    x = need(inputs, 0)
    for axis, outputs, scale in zip(*_targets(call, x, inputs), strict=True):
        if outputs != x.shape[axis] or scale != 1:
            x = _along(call, x, axis, outputs, scale)
    return x


OPERATORS: dict[str, Callable[[Call, Inputs], Tensor]] = {"Resize": _resize, "Upsample": _resize}
