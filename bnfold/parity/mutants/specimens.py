"""Specimens: a small network for every move of the planner and every kind of linear.

Random weights and statistics by seed, gamma of both signs. What a fold of them can get wrong, and whether the suite
notices, needs no bundle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from bnfold.parity.mutants.drafting import Draft

Make = Callable[[Draft], onnx.ModelProto]


@dataclass(frozen=True)
class Specimen:
    """name: of the network; move: the one of the planner that it is there for; what: its linear or its form."""

    name: str
    move: str
    what: str
    make: Make

    def model(self, dtype: str = "float32", seed: int = 0) -> onnx.ModelProto:
        """The network, numbers drawn by seed."""
        return self.make(Draft(np.random.default_rng(seed), dtype))


# A linear with the norms right behind it


def convolution(d: Draft) -> onnx.ModelProto:
    """3x3 with padding, a norm with its own epsilon."""
    x = d.conv("input", "conv", 4, 4, pads=[1] * 4)
    return d.model((4, 6, 6), d.batch_norm(x, "bn", 4, eps=1e-3), 4)


def convolution_in_groups(d: Draft) -> onnx.ModelProto:
    """Two groups, no bias."""
    x = d.conv("input", "conv", 4, 6, group=2, bias=False)
    return d.model((4, 6, 6), d.batch_norm(x, "bn", 6), 4)


def depthwise_convolution(d: Draft) -> onnx.ModelProto:
    """One input channel for each output."""
    x = d.conv("input", "conv", 4, 4, group=4)
    return d.model((4, 6, 6), d.batch_norm(x, "bn", 4), 4)


def convolution_of_one_dimension(d: Draft) -> onnx.ModelProto:
    """Conv over sequences, with two norms in a row."""
    x = d.batch_norm(d.conv("input", "conv", 3, 5, dims=1), "one", 5)
    return d.model((3, 12), d.batch_norm(x, "two", 5), 3)


def convolution_of_three_dimensions(d: Draft) -> onnx.ModelProto:
    """Conv over volumes."""
    x = d.conv("input", "conv", 2, 4, 2, dims=3)
    return d.model((2, 4, 4, 4), d.batch_norm(x, "bn", 4), 5)


def transposed_convolution(d: Draft) -> onnx.ModelProto:
    """Weights (I, O/g, *K) of two groups, stride 2."""
    parts = [d.constant("up.weight", d.weight(4, 3, 3, 3)), d.constant("up.bias", d.normal(6))]
    x = d.node("ConvTranspose", ["input", *parts], group=2, kernel_shape=[3, 3], strides=[2, 2])
    return d.model((4, 4, 4), d.batch_norm(x, "bn", 6), 4)


def dense_with_alpha_and_beta(d: Draft) -> onnx.ModelProto:
    """Gemm with factors of its own."""
    x = d.dense("input", "fc", 8, 6, alpha=0.5, beta=2.0)
    return d.model((8,), d.batch_norm(x, "bn", 6), 2)


def product_and_hand_written_norm(d: Draft) -> onnx.ModelProto:
    """MatMul, its bias a node, batch norm spelled out."""
    x = d.node("MatMul", ["input", d.constant("fc.weight", d.weight(6, 6))])
    x = d.node("Add", [x, d.constant("fc.bias", d.normal(6))])
    return d.model((6,), d.hand_written(x, "norm", (6,)), 2)


# Through what stands between


def concatenation(d: Draft) -> onnx.ModelProto:
    """Each branch takes its slice of the norm."""
    parts = [d.conv("input", "one", 3, 4), d.conv("input", "two", 3, 5)]
    return d.model((3, 6, 6), d.batch_norm(d.node("Concat", parts, axis=1), "bn", 9), 4)


def residual(d: Draft) -> onnx.ModelProto:
    """Both terms take the scale, one of them the shift."""
    one = d.conv("input", "one", 3, 4)
    two = d.conv(d.node("Relu", ["input"]), "two", 3, 4)
    return d.model((3, 6, 6), d.batch_norm(d.node("Add", [one, two]), "bn", 4), 4)


def pixel_shuffle(d: Draft) -> onnx.ModelProto:
    """One channel of the norm for four of the convolution."""
    x = d.node("DepthToSpace", [d.conv("input", "conv", 3, 12)], blocksize=2, mode="CRD")
    return d.model((3, 6, 6), d.batch_norm(x, "bn", 3), 4)


# A norm before a linear


def norm_before_convolution(d: Draft) -> onnx.ModelProto:
    """The shift is summed over inputs and taps."""
    return d.model((4, 7, 7), d.conv(d.batch_norm("input", "bn", 4), "conv", 4, 4), 4)


def norm_before_dense(d: Draft) -> onnx.ModelProto:
    """Nine inputs of a dense layer for each channel, and a norm behind it."""
    x = d.node("Flatten", [d.batch_norm("input", "bn", 4)])
    return d.model((4, 3, 3), d.batch_norm(d.dense(x, "fc", 36, 5), "bn2", 5), 2)


# Branches


def parallel_branches(d: Draft) -> onnx.ModelProto:
    """RepVGG: 3x3 and 1x1 with a norm each, and a norm alone."""
    three = d.batch_norm(d.conv("input", "three", 4, 4, pads=[1] * 4), "bn3", 4)
    one = d.batch_norm(d.conv("input", "one", 4, 4, 1), "bn1", 4)
    x = d.node("Add", [d.node("Add", [three, one]), d.batch_norm("input", "bn0", 4)])
    return d.model((4, 6, 6), d.node("Relu", [x]), 4)


def norm_beside_its_input(d: Draft) -> onnx.ModelProto:
    """BN(y) + y is (a + 1) * y + b."""
    y = d.conv("input", "conv", 3, 4)
    return d.model((3, 6, 6), d.node("Add", [d.batch_norm(y, "bn", 4), y]), 4)


# Norms alone, shared weights, products without a bias


def norm_into_norm(d: Draft) -> onnx.ModelProto:
    """The first goes into the second, through a pool."""
    x = d.node("AveragePool", [d.batch_norm("input", "one", 4)], kernel_shape=[2, 2])
    return d.model((4, 6, 6), d.node("Sigmoid", [d.batch_norm(x, "two", 4)]), 4)


def shared_weight(d: Draft) -> onnx.ModelProto:
    """Two users of one weight, a norm behind each."""
    weight, bias = d.constant("both.weight", d.weight(4, 3, 3, 3)), d.constant("both.bias", d.normal(4))
    one = d.batch_norm(d.node("Conv", ["input", weight, bias]), "bn1", 4)
    two = d.batch_norm(d.node("Conv", [d.node("Relu", ["input"]), weight, bias]), "bn2", 4)
    return d.model((3, 6, 6), d.node("Mul", [one, d.node("Sigmoid", [two])]), 4)


def products_without_bias(d: Draft) -> onnx.ModelProto:
    """A norm that two products read, each of which gets an addition."""
    x = d.batch_norm("input", "bn", 6)
    one = d.node("MatMul", [x, d.constant("query.weight", d.weight(6, 5))])
    two = d.node("MatMul", [x, d.constant("key.weight", d.weight(6, 5))])
    return d.model((6,), d.node("Mul", [one, d.node("Tanh", [two])]), 2)


# Padding, and what is left over


def channel_through_padding(d: Draft) -> onnx.ModelProto:
    """The shift as a constant channel."""
    x = d.batch_norm(d.node("Relu", [d.conv("input", "one", 3, 4)]), "bn", 4)
    return d.model((3, 7, 7), d.conv(x, "two", 4, 5, pads=[1] * 4), 4)


def map_behind_padding(d: Draft) -> onnx.ModelProto:
    """The shift as a map of its own, smaller at the border."""
    return d.model((4, 5, 6), d.conv(d.batch_norm("input", "bn", 4), "conv", 4, 5, pads=[1] * 4), 4)


def shift_left_over(d: Draft) -> onnx.ModelProto:
    """Free sizes and padding: the scale goes, the shift stays."""
    return d.model((4, "h", "w"), d.conv(d.batch_norm("input", "bn", 4), "conv", 4, 5, pads=[1] * 4), 4)


def slope_for_each_channel(d: Draft) -> onnx.ModelProto:
    """A negative scale passes a LeakyReLU, whose slope it turns over."""
    x = d.node("LeakyRelu", [d.conv("input", "conv", 3, 6)], alpha=0.1)
    gamma, nothing = np.array([1.5, -0.7, 2.0, -1.1, -0.3, 0.4]), np.zeros(6)
    return d.model((3, 6, 6), d.batch_norm(x, "bn", 6, gamma=gamma, beta=nothing, mean=nothing), 4)


def classifier(d: Draft) -> onnx.ModelProto:
    """Two convolutions and two dense layers, three norms of both kinds; gives (n, 10)."""
    x = d.node("Relu", [d.batch_norm(d.conv("input", "one", 1, 6, pads=[1] * 4), "bn1", 6, eps=1e-5)])
    x = d.node("Relu", [d.hand_written(d.conv(x, "two", 6, 8, pads=[1] * 4, bias=False), "norm2", (8, 1, 1))])
    x = d.node("Flatten", [d.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])])
    x = d.node("Relu", [d.batch_norm(d.dense(x, "fc", 128, 16, alpha=0.5, beta=2.0), "bn3", 16, eps=1e-3)])
    return d.model((1, 8, 8), d.dense(x, "head", 16, 10), 2)


SPECIMENS: tuple[Specimen, ...] = (
    Specimen("convolution", "linear_to_norm", "Conv", convolution),
    Specimen("convolution in groups", "linear_to_norm", "Conv, groups", convolution_in_groups),
    Specimen("depthwise convolution", "linear_to_norm", "Conv, depthwise", depthwise_convolution),
    Specimen("one dimension, two norms", "linear_to_norm", "Conv 1-d", convolution_of_one_dimension),
    Specimen("three dimensions", "linear_to_norm", "Conv 3-d", convolution_of_three_dimensions),
    Specimen("transposed convolution", "linear_to_norm", "ConvTranspose, groups", transposed_convolution),
    Specimen("dense", "linear_to_norm", "Gemm, alpha and beta", dense_with_alpha_and_beta),
    Specimen("product", "compose_affine", "MatMul, hand-written norm", product_and_hand_written_norm),
    Specimen("concatenation", "linear_to_norm", "through Concat", concatenation),
    Specimen("residual", "linear_to_norm", "through Add", residual),
    Specimen("pixel shuffle", "linear_to_norm", "through DepthToSpace", pixel_shuffle),
    Specimen("norm before convolution", "norm_to_linear", "Conv", norm_before_convolution),
    Specimen("norm before dense", "norm_to_linear", "Gemm, through Flatten", norm_before_dense),
    Specimen("parallel branches", "merge_branches", "RepVGG", parallel_branches),
    Specimen("norm beside its input", "merge_branches", "BN(y) + y", norm_beside_its_input),
    Specimen("norm into norm", "compose_affine", "through AveragePool", norm_into_norm),
    Specimen("shared weight", "copy_shared_weight", "Conv", shared_weight),
    Specimen("products without bias", "extra_additions", "MatMul", products_without_bias),
    Specimen("channel through padding", "ones_channel", "Conv", channel_through_padding),
    Specimen("map behind padding", "constant_map", "Conv", map_behind_padding),
    Specimen("shift left over", "leftover_shift", "Conv", shift_left_over),
    Specimen("slope of each channel", "per_channel_slope", "through LeakyRelu", slope_for_each_channel),
    Specimen("classifier", "linear_to_norm", "a whole network", classifier),
)
