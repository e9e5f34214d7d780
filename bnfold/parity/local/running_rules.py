"""The rule of rounding of each operator that a fold moves maps past: (size, error) in, (size, error) out.

Operators by their ONNX specification. `by.step` is one elementwise operation, `by.products(n)` a sum of products with n
roundings, `by.eta` what underflow may lose. A rule that moves data only applies its operator to both arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold.parity.local.bounds import BATCH_NORM_ROUNDINGS, normalising
from bnfold.parity.local.interpolation import interpolate
from bnfold.parity.local.running import F64, Array, Rule, State, Step


def linear(step: Step) -> list[State]:
    """Conv, ConvTranspose, Gemm and MatMul by a constant: K products, K sums, alpha, beta and the bias."""
    x, by = step.data(), step.by
    weight, lost = step.constant(1)
    weight, lost = np.asarray(weight, np.float64), np.asarray(lost)
    alpha, beta = (abs(float(step.attribute(name, 1.0))) for name in ("alpha", "beta"))

    def over(data: F64, matrix: F64) -> F64:
        return np.asarray(alpha * step.apply(data, matrix, drop=("alpha", "beta"))[0])

    sums = over(x.most, np.abs(weight))
    error = _rounded_weights(over, x.most, weight, lost, sums, by.store)
    bias, bias_error = _bias(step, sums, beta)
    roundings = _fan_in(step, weight) + 4
    own = by.products(roundings)
    under = roundings * by.inner_eta * (1 + alpha) + 2 * by.eta
    carried = over(x.error, np.abs(weight)) if x.error.any() else 0.0
    total = own * (sums + error + bias + bias_error) + error + bias_error + carried + under
    return [State(sums + bias, np.asarray(total))]


def _rounded_weights(over: Callable[[F64, F64], F64], most: F64, weight: F64, lost: F64, sums: F64, unit: float) -> Any:
    """What the weights' own error does: the largest relative one, of the sums.

    Where some are off by far more than a rounding, as subnormal ones are, they do not stand for the others.
    """
    if not lost.any():
        return 0.0
    with np.errstate(all="ignore"):
        share = float(np.max(np.where(weight != 0, lost / np.abs(weight), 0.0)))
        is_relative = not np.any(lost[weight == 0]) and share <= 2 * unit
    return share * sums if is_relative else over(most, lost)


def _bias(step: Step, sums: F64, beta: float) -> tuple[Any, Any]:
    if len(step.inputs) < 3 or step.inputs[2] is None or step.node.op_type == "MatMul":
        return 0.0, 0.0
    value, error = step.constant(2)
    size, lost = beta * np.abs(value), beta * np.asarray(error)
    if step.node.op_type == "Gemm":
        return size, lost
    shape = (-1, *(1,) * (sums.ndim - 2))
    return size.reshape(shape), lost.reshape(shape)


def _fan_in(step: Step, weight: Array) -> int:
    shape = weight.shape
    match step.node.op_type:
        case "Conv":
            return math.prod(shape[1:])
        case "ConvTranspose":
            return math.prod((shape[0] // int(step.attribute("group", 1)), *shape[2:]))
        case "Gemm":
            return int(shape[1] if step.attribute("transB", 0) else shape[0])
    return int(shape[0])


def matmul(step: Step) -> list[State]:
    """MatMul by a constant matrix."""
    if np.ndim(step.constant(1)[0]) != 2:
        raise step.unbounded("multiplies by a stack of matrices, for which there is no rule")
    return linear(step)


def batch_norm(step: Step) -> list[State]:
    """BatchNormalization in inference mode, whichever way it is written. Source: ONNX BatchNormalization-15."""
    x, by = step.data(), step.by
    if step.attribute("training_mode", 0) or not step.attribute("is_test", 1):
        raise step.unbounded("is in training mode")
    shape = (-1, *(1,) * (x.size.ndim - 2))
    (gamma, gamma_error), (beta, beta_error), (mean, mean_error), (variance, variance_error) = (
        tuple(np.asarray(part, np.float64).reshape(shape) for part in step.constant(at)) for at in range(1, 5)
    )
    eps = float(np.float32(step.attribute("epsilon", 1e-5)))
    scale, scale_error = normalising((gamma, gamma_error), (variance, variance_error), eps)
    own = by.sums(BATCH_NORM_ROUNDINGS)
    mean, beta = np.abs(mean), np.abs(beta)
    size = scale * (x.size + mean) + beta
    carried = (scale + scale_error) * (x.error + mean_error) + scale_error * (x.size + mean) + beta_error
    # A scale that is subnormal is off by eta, and so are the products; each meets one of these factors.
    under = by.eta * (x.most + mean + mean_error + np.abs(gamma) + gamma_error + 4)
    return [State(size, (1 + own) * carried + own * size + under)]


def add(step: Step) -> list[State]:
    """Add, Sub and Sum: each term's error, and a rounding of every partial sum."""
    first, *others = [step.data(at) for at in range(len(step.inputs))]
    total = first
    for other in others:
        size = total.size + other.size
        error = total.error + other.error
        value = None
        if total.value is not None and other.value is not None:
            value = total.value - other.value if step.node.op_type == "Sub" else total.value + other.value
        total = State(size, error + step.by.step * (size + error), value)
    return [total]


def multiply(step: Step) -> list[State]:
    """Mul."""
    left, right = step.data(0), step.data(1)
    size = left.size * right.size
    carried = left.error * right.most + left.size * right.error
    value = None if left.value is None or right.value is None else left.value * right.value
    return [State(size, carried + step.by.step * (size + carried) + step.by.eta, value)]


def divide(step: Step) -> list[State]:
    """Div by a constant that cannot round to zero."""
    left = step.data(0)
    by, error = step.constant(1)
    return [_quotient(step, left, np.asarray(by, np.float64), error)]


def reciprocal(step: Step) -> list[State]:
    """Reciprocal of a constant."""
    by, error = step.constant(0)
    return [_quotient(step, State.of(np.ones_like(by)), np.asarray(by, np.float64), error)]


def _quotient(step: Step, left: State, by: F64, error: F64) -> State:
    """|z'/c' - z/c| <= |z' - z|/|c'| + |z||c' - c|/(|c||c'|)."""
    least = np.abs(by) - error
    if not np.all(least > 0):
        raise step.unbounded("divides by what may round to zero")
    size = left.size / np.abs(by)
    carried = (left.error + size * error) / least
    value = None if left.value is None else left.value / by
    return State(size, carried + step.by.step * (size + carried) + step.by.eta, value)


def root(step: Step) -> list[State]:
    """Sqrt of a constant: IEEE 754 rounds it correctly."""
    of, error = step.constant(0)
    value = np.sqrt(np.asarray(of, np.float64))
    low = np.sqrt(np.maximum(of - error, 0.0))
    carried = np.where(error > 0, np.minimum(error / np.maximum(value + low, 1e-300), np.sqrt(error)), 0.0)
    return [State(value, carried + step.by.step * (value + carried), value)]


def no_further(step: Step) -> list[State]:
    """Relu: two values lie no further apart behind it."""
    x = step.data()
    return [State(x.size, x.error)]


def clip(step: Step) -> list[State]:
    """Clip, as Relu; a bound on the far side of zero is the least that comes out. Source: ONNX Clip-6 to Clip-13."""
    x = step.data()
    low, high = float(step.attribute("min", -np.inf)), float(step.attribute("max", np.inf))
    error = x.error
    if len(step.inputs) > 1 and step.inputs[1] is not None:
        low, error = float(step.constant(1)[0]), np.maximum(error, step.constant(1)[1])
    if len(step.inputs) > 2 and step.inputs[2] is not None:
        high, error = float(step.constant(2)[0]), np.maximum(error, step.constant(2)[1])
    return [State(np.maximum(x.size, max(low, -high, 0.0)), error)]


def negate(step: Step) -> list[State]:
    """Neg changes a sign, and rounds nothing."""
    x = step.data()
    return [State(x.size, x.error, None if x.value is None else -x.value)]


def slope(step: Step) -> list[State]:
    """LeakyRelu and PRelu: a product by the slope on one side. Source: ONNX PRelu-16, LeakyRelu-16."""
    x = step.data()
    if step.node.op_type == "LeakyRelu":
        by, error = np.asarray(float(np.float32(step.attribute("alpha", 0.01)))), np.zeros(())
    else:
        value, error = step.constant(1)
        by = np.asarray(value, np.float64)
    steepest = np.maximum(1.0, np.abs(by) + error)
    carried = steepest * x.error + error * x.size
    size = np.maximum(1.0, np.abs(by)) * x.size
    return [State(size, carried + step.by.step * (size + carried) + step.by.eta)]


def move(step: Step) -> list[State]:
    """Data that change places and nothing else; a border gets the size of its constant."""
    x = step.data()
    others = [None if state is None else state.value for state in step.inputs[1:]]
    for state in step.inputs[1:]:
        if state is not None and state.value is None:
            raise step.unbounded("takes what is computed from data where a constant is expected")
    given = list(zip(others, step.inputs[1:], strict=True))
    size = step.apply(x.size, *(other if state is None else _border(step, other, state.size) for other, state in given))
    error = step.apply(
        x.error, *(other if state is None else _border(step, other, state.error) for other, state in given)
    )
    if x.value is None:
        return [State(one, two) for one, two in zip(size, error, strict=True)]
    value = step.apply(np.asarray(x.value, np.float64), *others)
    return [State(one, two, three) for one, two, three in zip(size, error, value, strict=True)]


def _border(step: Step, other: Array | None, bound: F64) -> Array | None:
    """The number that a Pad writes, by its size or error; any other constant says where data go, and stays."""
    is_border = step.node.op_type == "Pad" and other is not None and other.dtype.kind == "f"
    return bound if is_border else other


def join(step: Step) -> list[State]:
    """Concat."""
    states = [step.data(at) for at in range(len(step.inputs))]
    size = step.apply(*(state.size for state in states))[0]
    error = step.apply(*(state.error for state in states))[0]
    values = [state.value for state in states]
    if any(value is None for value in values):
        return [State(size, error)]
    return [State(size, error, step.apply(*(np.asarray(value, np.float64) for value in values))[0])]


def pad(step: Step) -> list[State]:
    """Pad with zeros or with what is there. Source: ONNX Pad-2 to Pad-25."""
    if step.attribute("value", 0.0):
        raise step.unbounded("writes a border of its own, for which there is no rule")
    return move(step)


def resize(step: Step) -> list[State]:
    """Resize and Upsample: copies of the nearest place, or an interpolation."""
    return move(step) if step.attribute("mode", b"nearest") == b"nearest" else interpolate(step)


def maximum(step: Step) -> list[State]:
    """MaxPool, GlobalMaxPool and ReduceMax: two maxima are no further apart than the worst of what they are of."""
    x = step.data()
    others = [None if state is None else state.value for state in step.inputs[1:]]
    # size and error are not negative, as a border of minus infinity never is the largest.
    return [State(step.apply(x.size, *others)[0], step.apply(x.error, *others)[0])]


def average(step: Step) -> list[State]:
    """AveragePool, GlobalAveragePool and ReduceMean: a sum over the window, and a quotient."""
    x, by = step.data(), step.by
    others = [None if state is None else state.value for state in step.inputs[1:]]
    size, carried = step.apply(x.size, *others)[0], step.apply(x.error, *others)[0]
    kernel = step.attribute("kernel_shape", None)
    count = math.prod(kernel) if kernel else x.size.size // max(1, size.size)
    own = by.sums(count + 2)
    return [State(size, carried + own * (size + carried) + (count + 2) * by.inner_eta + by.eta)]


RULES: dict[str, Rule] = {
    "Conv": linear, "ConvTranspose": linear, "Gemm": linear, "MatMul": matmul, "BatchNormalization": batch_norm,
    "Add": add, "Sub": add, "Sum": add, "Mul": multiply, "Div": divide, "Reciprocal": reciprocal, "Sqrt": root,
    "Relu": no_further, "Clip": clip, "Neg": negate, "LeakyRelu": slope, "PRelu": slope,
    "Concat": join, "Pad": pad, "Resize": resize, "Upsample": resize,
    "MaxPool": maximum, "GlobalMaxPool": maximum, "ReduceMax": maximum,
    "AveragePool": average, "GlobalAveragePool": average, "ReduceMean": average,
    **dict.fromkeys(
        ("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Split",
         "Expand", "DepthToSpace", "SpaceToDepth", "Tile"), move,
    ),
}  # fmt: skip
