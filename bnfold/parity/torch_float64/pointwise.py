"""Element by element: arithmetic, comparisons, activations. By the formulas of the ONNX operator specifications."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from bnfold.parity.torch_float64.calls import Call, Inputs, Tensor, at, need

Operator = Callable[[Call, Inputs], "Tensor | tuple[Tensor, ...]"]


def _one(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda _, inputs: function(need(inputs, 0))


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _, inputs: function(need(inputs, 0), need(inputs, 1))


def _many(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _, inputs: functools.reduce(function, [need(inputs, place) for place in range(len(inputs))])


def _div(_: Call, inputs: Inputs) -> Tensor:
    left, right = need(inputs, 0), need(inputs, 1)
    rounding = None if left.is_floating_point() else "trunc"
    return torch.div(left, right, rounding_mode=rounding)


def _mean(call: Call, inputs: Inputs) -> Tensor:
    total = _many(torch.add)(call, inputs)
    return _single(total) / len(inputs)


def _single(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


def _clip(call: Call, inputs: Inputs) -> Tensor:
    """Clip-1 has its limits as attributes, Clip-11 as inputs."""
    x = need(inputs, 0)
    low, high = at(inputs, 1), at(inputs, 2)
    if call.opset < 11:
        low, high = (torch.tensor(call.get(name), dtype=x.dtype) for name in ("min", "max"))
    x = x if low is None else torch.maximum(x, low.to(x.dtype))
    return x if high is None else torch.minimum(x, high.to(x.dtype))


def _leaky_relu(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    return torch.where(x < 0, call.number("alpha") * x, x)


def _prelu(_: Call, inputs: Inputs) -> Tensor:
    x, slope = need(inputs, 0), need(inputs, 1)
    return torch.where(x < 0, slope * x, x)


def _thresholded_relu(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    return torch.where(x > call.number("alpha"), x, torch.zeros_like(x))


def _elu(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    return torch.where(x < 0, call.number("alpha") * _expm1(x), x)


def _selu(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    return call.number("gamma") * torch.where(x <= 0, call.number("alpha") * _expm1(x), x)


def _celu(call: Call, inputs: Inputs) -> Tensor:
    x, alpha = need(inputs, 0), call.number("alpha")
    return torch.clamp(x, min=0) + alpha * _expm1(x / alpha)


def _expm1(x: Tensor) -> Tensor:
    """exp(x) - 1 where x < 0, 0 elsewhere: no infinity where the branch is not taken, for its gradient's sake."""
    return torch.expm1(torch.clamp(x, max=0))


def _hard_sigmoid(call: Call, inputs: Inputs) -> Tensor:
    return torch.clamp(call.number("alpha") * need(inputs, 0) + call.number("beta"), 0.0, 1.0)


def _hard_swish(_: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    return x * torch.clamp(x / 6.0 + 0.5, 0.0, 1.0)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) for every x; torch's own is linear beyond 20, which is 2e-9 off."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _mish(_: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    return x * torch.tanh(_softplus(x))


def _gelu(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    if call.get("approximate") == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _swish(call: Call, inputs: Inputs) -> Tensor:
    x = need(inputs, 0)
    return x * torch.sigmoid(call.number("alpha") * x)


def _where(_: Call, inputs: Inputs) -> Tensor:
    return torch.where(need(inputs, 0), need(inputs, 1), need(inputs, 2))


def _dropout(call: Call, inputs: Inputs) -> Tensor:
    training = at(inputs, 2)
    if training is not None and bool(training):
        raise call.refuse("is in training mode")
    return need(inputs, 0)


# onnx.TensorProto's numbers of data types; floats have the type of the evaluation.
_INTEGERS: dict[int, torch.dtype] = {
    2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
}  # fmt: skip
_FLOATS = (1, 10, 11, 16)


def cast(call: Call, x: Tensor, kind: int) -> Tensor:
    """A tensor in another ONNX data type. Raises ParityError for strings, complex numbers and eight bits."""
    if kind in _FLOATS:
        return x.to(call.dtype)
    if kind not in _INTEGERS:
        raise call.refuse(f"casts to data type {kind}")
    return x.to(_INTEGERS[kind])


def _cast(call: Call, inputs: Inputs) -> Tensor:
    return cast(call, need(inputs, 0), int(call.get("to")))


def _cast_like(_: Call, inputs: Inputs) -> Tensor:
    return need(inputs, 0).to(need(inputs, 1).dtype)


def _power(left: Tensor, right: Tensor) -> Tensor:
    return torch.pow(left, right).to(left.dtype)


OPERATORS: dict[str, Operator] = {
    "Abs": _one(torch.abs), "Neg": _one(torch.neg), "Sqrt": _one(torch.sqrt), "Exp": _one(torch.exp),
    "Log": _one(torch.log), "Reciprocal": _one(torch.reciprocal), "Erf": _one(torch.erf), "Sin": _one(torch.sin),
    "Cos": _one(torch.cos), "Floor": _one(torch.floor), "Ceil": _one(torch.ceil), "Sign": _one(torch.sign),
    "Not": _one(torch.logical_not), "Identity": _one(lambda x: x), "Relu": _one(torch.relu),
    "Sigmoid": _one(torch.sigmoid), "Tanh": _one(torch.tanh), "Softplus": _one(_softplus),
    "Softsign": _one(lambda x: x / (1 + torch.abs(x))),
    "Add": _two(torch.add), "Sub": _two(torch.sub), "Mul": _two(torch.mul), "Div": _div, "Pow": _two(_power),
    "Equal": _two(torch.eq), "Greater": _two(torch.gt), "GreaterOrEqual": _two(torch.ge), "Less": _two(torch.lt),
    "LessOrEqual": _two(torch.le), "And": _two(torch.logical_and), "Or": _two(torch.logical_or),
    "Xor": _two(torch.logical_xor), "MatMul": _two(torch.matmul),
    "Min": _many(torch.minimum), "Max": _many(torch.maximum), "Sum": _many(torch.add), "Mean": _mean,
    "Clip": _clip, "LeakyRelu": _leaky_relu, "PRelu": _prelu, "ThresholdedRelu": _thresholded_relu, "Elu": _elu,
    "Selu": _selu, "Celu": _celu, "HardSigmoid": _hard_sigmoid, "HardSwish": _hard_swish, "Mish": _mish,
    "Gelu": _gelu, "Swish": _swish, "Where": _where, "Dropout": _dropout, "Cast": _cast, "CastLike": _cast_like,
}  # fmt: skip
