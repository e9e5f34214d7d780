"""Small ONNX networks, one for each kind of edit that the planner makes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from parity_networks import Builder

Make = Callable[[Builder], onnx.ModelProto]


def conv(b: Builder, x: str, name: str, inputs: int, outputs: int, kernel: int = 3, padding: int = 0) -> str:
    weight = b.constant(f"{name}.weight", b.weight(outputs, inputs, kernel, kernel))
    bias = b.constant(f"{name}.bias", b.normal(outputs))
    return b.node("Conv", [x, weight, bias], kernel_shape=[kernel] * 2, pads=[padding] * 4)


def norm_before_convolution(b: Builder) -> onnx.ModelProto:
    x = b.batch_norm("input", "bn", 4)
    return b.model((None, 4, 7, 7), conv(b, x, "conv", 4, 4), 4)


def norm_before_dense(b: Builder) -> onnx.ModelProto:
    """The sum over 4 * 9 inputs of each output goes into its bias."""
    x = b.node("Flatten", [b.batch_norm("input", "bn", 4)])
    y = b.node("Gemm", [x, b.constant("fc.weight", b.weight(5, 36)), b.constant("fc.bias", b.normal(5))], transB=1)
    return b.model((None, 4, 3, 3), b.batch_norm(y, "bn2", 5), 2)


def concatenation_before_norm(b: Builder) -> onnx.ModelProto:
    parts = [conv(b, "input", "one", 3, 4), conv(b, "input", "two", 3, 5)]
    x = b.node("Concat", parts, axis=1)
    return b.model((None, 3, 6, 6), b.batch_norm(x, "bn", 9), 4)


def residual_before_norm(b: Builder) -> onnx.ModelProto:
    one = conv(b, "input", "one", 3, 4)
    two = conv(b, b.node("Relu", ["input"]), "two", 3, 4)
    x = b.node("Add", [one, two])
    return b.model((None, 3, 6, 6), b.batch_norm(x, "bn", 4), 4)


def parallel_branches(b: Builder) -> onnx.ModelProto:
    """RepVGG: 3x3 and 1x1 with a norm each, and a norm alone."""
    three = b.batch_norm(conv(b, "input", "three", 4, 4, 3, 1), "bn3", 4)
    one = b.batch_norm(conv(b, "input", "one", 4, 4, 1), "bn1", 4)
    x = b.node("Add", [b.node("Add", [three, one]), b.batch_norm("input", "bn0", 4)])
    return b.model((None, 4, 6, 6), b.node("Relu", [x]), 4)


def pixel_shuffle_before_norm(b: Builder) -> onnx.ModelProto:
    x = b.node("DepthToSpace", [conv(b, "input", "conv", 3, 12)], blocksize=2, mode="CRD")
    return b.model((None, 3, 6, 6), b.batch_norm(x, "bn", 3), 4)


def channel_through_padding(b: Builder) -> onnx.ModelProto:
    x = b.node("Relu", [conv(b, "input", "one", 3, 4)])
    x = b.batch_norm(x, "bn", 4)
    return b.model((None, 3, 7, 7), conv(b, x, "two", 4, 5, 3, 1), 4)


def map_behind_padding(b: Builder) -> onnx.ModelProto:
    x = b.batch_norm("input", "bn", 4)
    return b.model((None, 4, 5, 6), conv(b, x, "conv", 4, 5, 3, 1), 4)


def shift_left_over(b: Builder) -> onnx.ModelProto:
    x = b.batch_norm("input", "bn", 4)
    model = b.model((None, 4, 5, 6), conv(b, x, "conv", 4, 5, 3, 1), 4)
    for size, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], ("h", "w"), strict=True):
        size.dim_param = name
    return model


def slope_for_each_channel(b: Builder) -> onnx.ModelProto:
    x = b.node("LeakyRelu", [conv(b, "input", "conv", 3, 6)], alpha=0.1)
    parts = b.statistics(6)
    gamma = np.array([1.5, -0.7, 2.0, -1.1, -0.3, 0.4])
    parts = {**parts, "gamma": gamma, "beta": np.zeros(6), "mean": np.zeros(6)}
    y = b.node("BatchNormalization", [x, *(b.constant(f"bn.{k}", v) for k, v in parts.items())])
    return b.model((None, 3, 6, 6), y, 4)


def norm_taken_in_by_a_norm(b: Builder) -> onnx.ModelProto:
    """Nothing but norms: the first goes into the second, through a pool."""
    x = b.batch_norm("input", "one", 4)
    x = b.node("AveragePool", [x], kernel_shape=[2, 2])
    return b.model((None, 4, 6, 6), b.node("Sigmoid", [b.batch_norm(x, "two", 4)]), 4)


def norm_beside_its_input(b: Builder) -> onnx.ModelProto:
    """BN(y) + y is (a + 1) * y + b: more than a norm right behind its linear."""
    y = conv(b, "input", "conv", 3, 4)
    return b.model((None, 3, 6, 6), b.node("Add", [b.batch_norm(y, "bn", 4), y]), 4)


MAKES: tuple[Make, ...] = (
    norm_before_convolution, norm_before_dense, concatenation_before_norm, residual_before_norm, parallel_branches,
    pixel_shuffle_before_norm, channel_through_padding, map_behind_padding, shift_left_over, slope_for_each_channel,
    norm_taken_in_by_a_norm, norm_beside_its_input,
)  # fmt: skip


def network(make: Make, dtype: str = "float32", seed: int = 0) -> onnx.ModelProto:
    return make(Builder(np.random.default_rng(seed), dtype))
