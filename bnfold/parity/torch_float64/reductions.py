"""Sums over axes: dense layers, norms, softmax, Reduce*. By the formulas of the ONNX operator specifications."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bnfold.parity.torch_float64.calls import Call, Inputs, Tensor, at, axes_of, need


def _gemm(call: Call, inputs: Inputs) -> Tensor:
    left, right, bias = need(inputs, 0), need(inputs, 1), at(inputs, 2)
    left = left.T if call.get("transA") else left
    right = right.T if call.get("transB") else right
    y = call.number("alpha") * (left @ right)
    return y if bias is None else y + call.number("beta") * bias


def _einsum(call: Call, inputs: Inputs) -> Tensor:
    found: Tensor = torch.einsum(call.get("equation"), *[need(inputs, place) for place in range(len(inputs))])
    return found


def _channelwise(tensor: Tensor, rank: int) -> Tensor:
    return tensor.reshape(-1, *(1,) * (rank - 2))


def _batch_norm(call: Call, inputs: Inputs) -> Tensor:
    if call.get("training_mode"):
        raise call.refuse("is in training mode")
    if not call.get("spatial", 1):
        raise call.refuse("has spatial = 0")
    x = need(inputs, 0)
    gamma, beta, mean, variance = (_channelwise(need(inputs, place), x.ndim) for place in range(1, 5))
    return gamma * (x - mean) / torch.sqrt(variance + call.number("epsilon")) + beta


def _standardised(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(axes, keepdim=True) + epsilon)


def _instance_norm(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    scale, bias = (_channelwise(need(inputs, place), x.ndim) for place in (1, 2))
    return scale * _standardised(x, tuple(range(2, x.ndim)), call.number("epsilon")) + bias


def _layer_norm(call: Call, inputs: Inputs) -> Tensor:
    x, bias = need(inputs, 0), at(inputs, 2)
    axes = tuple(range(x.ndim))[call.get("axis") :]
    y = _standardised(x, axes, call.number("epsilon")) * need(inputs, 1)
    return y if bias is None else y + bias


def _group_norm(call: Call, inputs: Inputs) -> Tensor:
    """GroupNormalization-18 has a scale for each group, -21 one for each channel."""
    x = need(inputs, 0)
    groups = call.get("num_groups")
    parts = x.reshape(x.shape[0], groups, -1)
    y = _standardised(parts, (2,), call.number("epsilon"))
    scale, bias = need(inputs, 1), need(inputs, 2)
    if call.opset < 21:
        return (y * scale[:, None] + bias[:, None]).reshape(x.shape)
    return y.reshape(x.shape) * _channelwise(scale, x.ndim) + _channelwise(bias, x.ndim)


def _local_response(call: Call, inputs: Inputs) -> Tensor:
    x, size = need(inputs, 0), call.get("size")
    before = (size - 1) // 2
    squares = torch.nn.functional.pad((x**2).transpose(1, -1), (before, size - 1 - before))
    total = squares.unfold(-1, size, 1).sum(-1).transpose(1, -1)
    divisor: Tensor = (call.number("bias") + call.number("alpha") / size * total) ** call.number("beta")
    return x / divisor


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Callable[[Call, Inputs], Tensor]:
    def softmax(call: Call, inputs: Inputs) -> Tensor:
        """Before opset 13 everything from the axis on is one axis."""
        x, axis = need(inputs, 0), call.get("axis")
        if call.opset >= 13:
            return function(x, axis)
        flat = x.reshape(*x.shape[: axis % x.ndim], -1)
        return function(flat, -1).reshape(x.shape)

    return softmax


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[[Call, Inputs], Tensor]:
    def reduce(call: Call, inputs: Inputs) -> Tensor:
        x = need(inputs, 0)
        axes = axes_of(call, inputs, 1)
        if not axes and call.get("noop_with_empty_axes"):
            return x
        chosen = tuple(axis % x.ndim for axis in axes) if axes else tuple(range(x.ndim))
        return function(x, chosen, bool(call.get("keepdims"))) if chosen else x

    return reduce


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _global(function: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Callable[[Call, Inputs], Tensor]:
    return lambda _, inputs: function(need(inputs, 0), tuple(range(2, need(inputs, 0).ndim)))


def _arg(function: Callable[[Tensor, int, bool], Tensor]) -> Callable[[Call, Inputs], Tensor]:
    def arg(call: Call, inputs: Inputs) -> Tensor:
        if call.get("select_last_index"):
            raise call.refuse("takes the last of equals")
        return function(need(inputs, 0), call.get("axis"), bool(call.get("keepdims")))

    return arg


OPERATORS: dict[str, Callable[[Call, Inputs], Tensor]] = {
    "Gemm": _gemm, "Einsum": _einsum, "BatchNormalization": _batch_norm, "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm, "GroupNormalization": _group_norm, "LRN": _local_response,
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduce(_product),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.sqrt((x**2).sum(axes, keepdim=keep))),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: (x**2).sum(axes, keepdim=keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: torch.log(x.sum(axes, keepdim=keep))),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "GlobalAveragePool": _global(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": _global(lambda x, axes: x.amax(axes, keepdim=True)),
    "ArgMax": _arg(torch.argmax), "ArgMin": _arg(torch.argmin),
}  # fmt: skip
