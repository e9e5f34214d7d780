"""Parts of random ONNX graphs: linears in every layout, and norms in every spelling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx_networks import HALF
from onnx_random_graphs import Growing, Misfit


def weight(g: Growing, kind: str, fan_in: int, *shape: int) -> str:
    """A weight; now and then one that another node has."""
    key = (kind, shape)
    if g.reusable.get(key) and g.chance(5):
        return str(g.pick(g.reusable[key]))
    name = g.const(g.rng.normal(size=shape) * 1.2 / math.sqrt(fan_in), "w")
    g.reusable.setdefault(key, []).append(name)
    return name


def bias(g: Growing, channels: int, *, always: bool = False) -> list[str]:
    return [g.const(g.rng.normal(size=channels), "b")] if always or g.pick((True, False)) else []


def conv(g: Growing, x: str) -> Sequence[str]:
    channels, rank = space(g, x)
    groups = g.pick([n for n in (1, 1, 1, 2, channels) if channels % n == 0])
    outputs = g.pick((4, 6, 2, channels)) if groups < channels else channels * g.pick((1, 1, 2))
    if outputs % groups:
        raise Misfit("groups")
    kernel = tuple(g.pick((3, 1, 3, 1, 2)) for _ in range(rank)) if g.chance(6) else (g.pick((3, 1)),) * rank
    padding = g.pick(("none", "same", "any", "auto"))
    given: dict[str, Any] = {"dilations": [g.pick((1, 1, 1, 1, 2))] * rank, "strides": [g.pick((1, 1, 1, 2))] * rank}
    if padding == "same":
        given["pads"] = [k // 2 * d for k, d in zip(kernel, given["dilations"], strict=True)] * 2
    elif padding == "any":
        given["pads"] = [g.pick((0, 1, 2)) for _ in range(2 * rank)]
    elif padding == "auto":
        given["auto_pad"] = g.pick(("SAME_UPPER", "SAME_LOWER", "VALID"))
    w = weight(g, "conv", channels // groups * math.prod(kernel), outputs, channels // groups, *kernel)
    given["kernel_shape"] = list(kernel) if g.pick((True, False)) else None
    return [g.node("Conv", x, w, *bias(g, outputs), group=groups, **given)]


def transposed(g: Growing, x: str) -> Sequence[str]:
    channels, rank = space(g, x)
    groups = g.pick([n for n in (1, 1, 2) if channels % n == 0])
    per_group = g.pick((2, 4, channels // groups))
    kernel, stride = g.pick((1, 2, 3)), g.pick((1, 1, 2))
    extra = g.pick((0, 0, stride - 1))
    begin, end = g.pick(((0, 0), (0, 0), (1, 1), (0, 1)))
    if kernel < begin + end:
        raise Misfit("nothing is left")
    w = weight(g, "transposed", channels // groups * kernel, channels, per_group, *[kernel] * rank)
    return [
        g.node(
            "ConvTranspose", x, w, *bias(g, groups * per_group), group=groups, strides=[stride] * rank,
            pads=[begin] * rank + [end] * rank, output_padding=[extra] * rank, dilations=[g.pick((1, 1, 1, 2))] * rank,
        )
    ]  # fmt: skip


def dense(g: Growing, x: str) -> Sequence[str]:
    """Gemm with either layout and factors, or MatMul with an addition; MatMul alone for rank 3 and more."""
    shape = g.shape(x)
    inputs, outputs = shape[-1], g.pick((4, 6, 3))
    kind = g.pick(("gemm", "matmul")) if len(shape) == 2 else "matmul"
    if kind == "gemm":
        turned = g.pick((0, 1))
        w = weight(g, "dense", inputs, *((outputs, inputs) if turned else (inputs, outputs)))
        factors = {"alpha": g.pick((1.0, 1.0, -0.5)), "beta": g.pick((1.0, 1.0, 0.75)), "transB": turned}
        return [g.node("Gemm", x, w, *bias(g, outputs, always=g.opset < 11), **factors)]
    if g.chance(4):
        w = g.node("Transpose", weight(g, "dense", inputs, outputs, inputs), perm=[1, 0])
        g.constants.add(w)
    else:
        w = weight(g, "dense", inputs, inputs, outputs)
    y = g.node("MatMul", x, w)
    return [g.node("Add", *g.pick(((y, c), (c, y)))) for c in bias(g, outputs)] or [y]


def flat_dense(g: Growing, x: str) -> Sequence[str]:
    """Flatten, as a node or as a reshape, and a dense layer."""
    shape = g.shape(x)
    if g.free_space and math.prod(shape[2:]) > 1:
        raise Misfit("the size is not known")
    flat = g.node("Flatten", x) if g.pick((True, False)) else g.node("Reshape", x, g.integers(0, -1))
    return dense(g, flat)


def batch_norm(g: Growing, x: str) -> Sequence[str]:
    shape = g.shape(x)
    if len(shape) < 2:
        raise Misfit("no channels")
    channels = shape[1]
    eps = g.pick((1e-5, 1e-3, 0.0, 0.1))
    known = g.reusable.get(("norm", channels))
    if known and g.chance(4):  # one norm's parameters, a second time
        names = g.pick(known)
    else:
        names = [
            g.const(part, stem)
            for part, stem in zip(statistics(g, channels), ["gamma", "beta", "mean", "var"], strict=True)
        ]
        g.reusable.setdefault(("norm", channels), []).append(names)
    return [g.node("BatchNormalization", x, *names, epsilon=eps)]


def statistics(g: Growing, channels: int) -> tuple[Any, ...]:
    """gamma, beta, mean, variance: of mixed signs or positive, with zeros and tiny variances."""
    gamma = g.rng.normal(size=channels)
    if g.pick((True, False)):
        gamma = np.abs(gamma) + 0.05
    variance = g.rng.uniform(0.2, 2.0, size=channels)
    if g.chance(6):
        at = int(g.rng.integers(channels))
        variance[at] = 1e-3 if g.elem == HALF else 1e-8
        gamma[at] *= math.sqrt(variance[at]) * 4
    if g.chance(6):
        gamma[int(g.rng.integers(channels))] = 0.0
    return gamma, g.rng.normal(size=channels), g.rng.normal(size=channels), variance


def chain(g: Growing, x: str) -> Sequence[str]:
    """A norm by hand: over the channels, or over the last axis."""
    axis = 1 if g.pick((True, True, False)) else len(g.shape(x)) - 1
    channels = g.shape(x)[axis]
    gamma, beta, mean, variance = statistics(g, channels)

    def vector(values: Any) -> str:
        return g.const(np.asarray(values).reshape(-1, *[1] * (len(g.shape(x)) - 1 - axis)), "v")

    steps = g.pick(("whole", "whole", "scale", "shift", "two"))
    if steps == "scale":
        return [g.node("Mul", *_swapped(g, x, vector(gamma)))]
    if steps == "shift":
        return [g.node(g.pick(("Add", "Sub")), x, vector(beta))]
    y = g.node("Sub", x, vector(mean))
    if steps == "two":
        return [g.node("Div", y, vector(np.sqrt(variance + 1e-3)))]
    root = g.node("Sqrt", g.node("Add", vector(variance), g.const(np.asarray(1e-3))))
    if g.pick((True, False)):
        y = g.node("Div", y, root)
    else:
        y = g.node("Mul", y, g.node("Reciprocal", root))
    g.constants.update(name for name in list(g.data)[-4:] if name.startswith(("sqrt", "add", "reciprocal")))
    y = g.node("Mul", *_swapped(g, y, vector(gamma)))
    return [g.node("Add", *_swapped(g, y, vector(beta)))]


def step(g: Growing, x: str) -> Sequence[str]:
    """One number for all channels."""
    op = g.pick(("Add", "Mul", "Sub", "Div"))
    return [g.node(op, x, g.const(np.asarray(g.pick((0.5, -1.5, 2.25))).reshape(g.pick(((), (1,))))))]


def space(g: Growing, x: str) -> tuple[int, int]:
    """Channels, and the count of the axes behind them."""
    shape = g.shape(x)
    if len(shape) < 3:
        raise Misfit("no space")
    return shape[1], len(shape) - 2


def _swapped(g: Growing, one: str, other: str) -> tuple[str, str]:
    return g.pick(((one, other), (other, one)))
