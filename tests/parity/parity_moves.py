"""The specimens of the suite's self-test that are there for a move, as the tests of every kind of edit take them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from parity_networks import Builder

from bnfold.parity.mutants.drafting import Draft
from bnfold.parity.mutants.specimens import (
    channel_through_padding,
    concatenation,
    map_behind_padding,
    norm_before_convolution,
    norm_before_dense,
    norm_beside_its_input,
    norm_into_norm,
    parallel_branches,
    pixel_shuffle,
    residual,
    shift_left_over,
    slope_for_each_channel,
)

Make = Callable[[Draft], onnx.ModelProto]

MAKES: tuple[Make, ...] = (
    norm_before_convolution, norm_before_dense, concatenation, residual, parallel_branches, pixel_shuffle,
    channel_through_padding, map_behind_padding, shift_left_over, slope_for_each_channel, norm_into_norm,
    norm_beside_its_input,
)  # fmt: skip


def network(make: Make, dtype: str = "float32", seed: int = 0) -> onnx.ModelProto:
    return make(Draft(np.random.default_rng(seed), dtype))


def conv(b: Builder, x: str, name: str, inputs: int, outputs: int, kernel: int = 3, padding: int = 0) -> str:
    weight = b.constant(f"{name}.weight", b.weight(outputs, inputs, kernel, kernel))
    bias = b.constant(f"{name}.bias", b.normal(outputs))
    return b.node("Conv", [x, weight, bias], kernel_shape=[kernel] * 2, pads=[padding] * 4)
