"""Convolutions and pools, 1 to 3 spatial axes; paddings resolved as in `bnfold.parity.float64_operators`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from bnfold.parity.float64_operators import Window, window
from bnfold.parity.float64_operators import _transposed as transposed_window
from bnfold.parity.torch_float64.calls import Call, Inputs, Tensor, at, need

_CONVOLUTIONS: tuple[Any, ...] = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED: tuple[Any, ...] = (
    functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
)  # fmt: skip
_MAXIMA: tuple[Any, ...] = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


def _place(call: Call, x: Tensor, kernel: Sequence[int]) -> Window:
    rank = x.ndim - 2
    if not 1 <= rank <= 3 or len(kernel) != rank:
        raise call.refuse(f"has {rank} spatial axes")
    return window(
        x.shape[2:], kernel, call.get("auto_pad"), call.get("dilations"), call.get("pads"), call.get("strides"),
        call.get("ceil_mode") or 0,
    )  # fmt: skip


def _padded(x: Tensor, place: Window, fill: float) -> Tensor:
    """Exactly what the windows cover: padded before and behind, cut off where nothing looks (a negative padding)."""
    needed = [(o - 1) * s + r for o, s, r in zip(place.outputs, place.strides, place.reach, strict=True)]
    behind = [n - b - size for n, b, size in zip(needed, place.before, x.shape[2:], strict=True)]
    pads = [amount for pair in zip(reversed(place.before), reversed(behind), strict=True) for amount in pair]
    return functional.pad(x, pads, value=fill) if any(pads) else x


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.reshape(-1, *(1,) * (y.ndim - 2))


def _conv(call: Call, inputs: Inputs) -> Tensor:
    x, weight, bias = need(inputs, 0), need(inputs, 1), at(inputs, 2)
    place = _place(call, x, weight.shape[2:])
    x = _padded(x, place, 0.0)
    groups = call.get("group")
    if groups == x.shape[1] == weight.shape[0] and groups > 1:
        return _with_bias(_depthwise(x, weight, place), bias)
    found: Tensor = _CONVOLUTIONS[x.ndim - 3](x, weight, bias, place.strides, 0, place.dilations, groups)
    return found


def _depthwise(x: Tensor, weight: Tensor, place: Window) -> Tensor:
    """One channel to one: a sum over taps. torch's own, in float64, goes channel by channel."""
    total: Tensor | None = None
    for taps in itertools.product(*(range(size) for size in place.kernel)):
        part, tap_weight = x, weight[:, 0]
        for axis, tap in enumerate(taps):
            first, stride = tap * place.dilations[axis], place.strides[axis]
            part = part.narrow(axis + 2, first, (place.outputs[axis] - 1) * stride + 1)
            part = part[(slice(None),) * (axis + 2) + (slice(None, None, stride),)]
            tap_weight = tap_weight.select(1, tap)
        part = part * tap_weight.reshape(-1, *(1,) * len(taps))
        total = part if total is None else total + part
    return torch.zeros_like(x) if total is None else total


def _conv_transpose(call: Call, inputs: Inputs) -> Tensor:
    """The whole product without padding, then cut: pads of any kind and output_padding alike."""
    x, weight, bias = need(inputs, 0), need(inputs, 1), at(inputs, 2)
    rank = x.ndim - 2
    if not 1 <= rank <= 3:
        raise call.refuse(f"has {rank} spatial axes")
    place = transposed_window(
        x.shape[2:], weight.shape[2:], call.get("auto_pad"), call.get("dilations"), call.get("pads"),
        call.get("strides"), call.get("output_padding"), call.get("output_shape"),
    )  # fmt: skip
    full: Tensor = _TRANSPOSED[rank - 1](x, weight, None, place.strides, 0, 0, call.get("group"), place.dilations)
    behind = [b + o - size for b, o, size in zip(place.before, place.outputs, full.shape[2:], strict=True)]
    pads = [amount for pair in zip(reversed(place.before), reversed(behind), strict=True) for amount in pair]
    pads[::2] = [-amount for amount in pads[::2]]
    return _with_bias(functional.pad(full, pads) if any(pads) else full, bias)


def _max_pool(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    place = _place(call, x, call.get("kernel_shape"))
    padded = _padded(x, place, -math.inf)
    found: Tensor = _MAXIMA[x.ndim - 3](padded, place.kernel, place.strides, 0, place.dilations)
    return found


def _sums(x: Tensor, place: Window) -> Tensor:
    """The sum of every window: the pads count as zero."""
    x = _padded(x, place, 0.0)
    for axis, (reach, stride, dilation) in enumerate(zip(place.reach, place.strides, place.dilations, strict=True), 2):
        x = x.unfold(axis, reach, stride)[..., ::dilation].sum(-1)
    return x


def _average_pool(call: Call, inputs: Inputs) -> Tensor:
    """With count_include_pad the stated padding counts, what ceil_mode adds beyond it does not."""
    x = need(inputs, 0)
    place = _place(call, x, call.get("kernel_shape"))
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    shifted = place
    if call.get("count_include_pad"):
        stated = zip(reversed(place.before), reversed(place.after), strict=True)
        counted = functional.pad(counted, [amount for pair in stated for amount in pair], value=1.0)
        none = (0,) * len(place.kernel)
        shifted = Window(place.kernel, place.strides, place.dilations, none, none, place.outputs)
    return _sums(x, place) / _sums(counted, shifted)


OPERATORS: dict[str, Callable[[Call, Inputs], Tensor]] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "MaxPool": _max_pool, "AveragePool": _average_pool,
}  # fmt: skip
