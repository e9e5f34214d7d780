"""Every linear layer of ONNX, in front of a BatchNormalization."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_networks import FOLDED, HALF, Builder, check, fold_of, ops, outcomes

# ---------------------------------------------------------------------------------- convolutions

CONVS = {
    "1d": ((3, 4), (3,), {}),
    "1d dilated": ((3, 4), (2,), {"dilations": [2]}),
    "2d": ((3, 4), (3, 2), {"strides": [2, 1], "pads": [1, 0, 1, 1]}),
    "2d grouped": ((4, 6), (2, 2), {"group": 2}),
    "2d depthwise": ((4, 4), (3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "2d depthwise, two a channel": ((3, 6), (3, 3), {"group": 3}),
    "2d without bias": ((3, 4), (1, 1), {"bias": False}),
    "2d as large as its weight": ((4, 4), (2, 2), {"pads": [1, 1, 0, 0]}),
    "2d one channel": ((1, 1), (2, 2), {}),
    "2d padded by SAME_UPPER": ((3, 4), (3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "2d padded by SAME_LOWER": ((3, 4), (2, 2), {"auto_pad": "SAME_LOWER"}),
    "2d padded by VALID": ((3, 4), (3, 3), {"auto_pad": "VALID"}),
    "3d": ((2, 4), (2, 1, 3), {"pads": [1, 0, 1, 1, 0, 1]}),
    "3d grouped": ((4, 4), (2, 2, 2), {"group": 2}),
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("batch", [2, "N"])
def test_convolution(name, batch):
    channels, kernel, given = CONVS[name]

    def build(b: Builder) -> str:
        x = b.input(batch, channels[0], *(5, 4, 6)[: len(kernel)])
        return b.bn(b.conv(x, channels, kernel, **given), channels[1])

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["Conv"]


TRANSPOSED = {
    "1d": ((3, 4), (3,), {"strides": [2]}),
    "2d": ((3, 5), (3, 2), {"strides": [2, 1], "pads": [1, 0, 0, 1]}),
    "2d in equals out": ((4, 4), (2, 2), {"strides": [2, 2]}),
    "2d in equals out, a square of everything": ((2, 2), (2, 2), {}),
    "2d grouped": ((4, 6), (2, 3), {"group": 2}),
    "2d grouped, in equals out": ((6, 6), (2, 2), {"group": 3}),
    "2d depthwise": ((4, 4), (3, 3), {"group": 4, "strides": [2, 2]}),
    "2d grouped, fewer in a group than out": ((2, 8), (2, 2), {"group": 2}),
    "2d with output padding": ((3, 4), (2, 2), {"strides": [2, 2], "output_padding": [1, 1]}),
    "2d dilated": ((3, 4), (2, 2), {"dilations": [2, 2]}),
    "3d": ((2, 3), (2, 1, 2), {"strides": [1, 2, 1]}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution(name):
    channels, kernel, given = TRANSPOSED[name]

    def build(b: Builder) -> str:
        attributes = dict(given)
        x = b.input(2, channels[0], *(3, 4, 2)[: len(kernel)])
        weight = b.const(b.values(channels[0], channels[1] // attributes.get("group", 1), *kernel))
        bias = [b.const(b.values(channels[1]))] if attributes.pop("bias", True) else []
        return b.bn(b.node("ConvTranspose", x, weight, *bias, **attributes), channels[1])

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["ConvTranspose"]


@pytest.mark.parametrize("empty", [False, True])
def test_a_convolution_with_an_empty_optional_bias(empty):
    def build(b: Builder) -> str:
        x = b.input(2, 3, 5)
        weight = b.const(b.values(4, 3, 2))
        return b.bn(b.node("Conv", x, weight, *([""] if empty else [])), 4)

    assert outcomes(check(build)) == FOLDED


# ---------------------------------------------------------------------------------- Gemm

BIASES = {"none": None, "vector": (4,), "row": (1, 4), "one": (1,), "one by one": (1, 1), "scalar": ()}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("trans", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.5, -2.0), (-1.25, 0.0)])
def test_gemm(bias, trans, factors):
    trans_a, trans_b = trans

    def build(b: Builder) -> str:
        x = b.input(*((3, 2) if trans_a else (2, 3)))
        weight = b.const(b.values(*((4, 3) if trans_b else (3, 4))))
        shape = BIASES[bias]
        given = [] if shape is None else [b.const(b.values(*shape) if shape else np.asarray(0.75))]
        y = b.node("Gemm", x, weight, *given, alpha=factors[0], beta=factors[1], transA=trans_a, transB=trans_b)
        return b.bn(y, 4)

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["Gemm"]
    assert {a.name for a in result.model.graph.node[0].attribute} <= {"transA", "transB"}, "alpha and beta are in"


@pytest.mark.parametrize("square", [3, 4])
@pytest.mark.parametrize("how", ["stored", "unsqueezed", "reshaped", "full"])
def test_a_gemm_bias_that_runs_down_the_batch_is_not_taken_for_one_over_channels(how, square):
    """C of shape (M, 1) or (M, N), with M = N once, also as a vector of M numbers under another shape."""

    def build(b: Builder) -> str:
        x = b.input(square, 3)
        weight = b.const(b.values(3, 4))
        match how:
            case "stored":
                c = b.const(b.values(square, 1))
            case "full":
                c = b.const(b.values(square, 4))
            case "unsqueezed":
                c = b.node("Unsqueeze", b.const(b.values(square)), b.const(np.array([1])))
            case _:
                c = b.node("Reshape", b.const(b.values(square)), b.const(np.array([-1, 1])))
        return b.bn(b.node("Gemm", x, weight, c), 4)

    result = check(build)
    assert outcomes(result) == [("kept", "BIAS_SHAPE")]


@pytest.mark.parametrize("shape", [(1, -1), (-1,), (4,), (1, 1, 4)])
def test_a_gemm_bias_under_another_shape_over_the_channels_is_taken(shape):
    def build(b: Builder) -> str:
        x = b.input(2, 3)
        c = b.node("Reshape", b.const(b.values(4)), b.const(np.array(shape)))
        if len(shape) == 3:
            c = b.node("Squeeze", c, b.const(np.array([0])))
        return b.bn(b.node("Gemm", x, b.const(b.values(3, 4)), c), 4)

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["Gemm"]


def test_a_gemm_whose_weight_is_its_first_argument_is_kept():
    def build(b: Builder) -> str:
        return b.bn(b.node("Gemm", b.const(b.values(4, 3)), b.input(3, 4)), 4)

    assert outcomes(check(build)) == [("kept", "COMPUTED_WEIGHT")]


# ---------------------------------------------------------------------------------- MatMul


@pytest.mark.parametrize("adds", [0, 1, 2])
@pytest.mark.parametrize("left", [False, True])
def test_matmul_of_rank_2_with_additions_behind_it(adds, left):
    def build(b: Builder) -> str:
        y = b.node("MatMul", b.input("N", 3), b.const(b.values(3, 4)))
        for _ in range(adds):
            c = b.const(b.values(4))
            y = b.node("Add", c, y) if left else b.node("Add", y, c)
        return b.bn(y, 4)

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["MatMul", "Add"]


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("same", [False, True])
def test_matmul_of_a_higher_rank_has_its_channels_on_the_last_axis_and_a_norm_over_axis_1_is_kept(rank, same):
    size = 4 if same else 5

    def build(b: Builder) -> str:
        shape = (2, size, 3) if rank == 3 else (2, size, 2, 3)
        return b.bn(b.node("MatMul", b.input(*shape), b.const(b.values(3, 4))), size)

    assert outcomes(check(build)) == [("kept", "AXIS_MISMATCH")]


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_matmul_takes_a_hand_written_norm_over_its_last_axis(rank):
    def build(b: Builder) -> str:
        y = b.node("MatMul", b.input(*(2, 4, 5, 3)[4 - rank :]), b.const(b.values(3, 4)))
        y = b.node("Sub", y, b.const(b.values(4)))
        return b.node("Mul", y, b.const(b.values(1, 4) if rank > 1 else b.values(4)))

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["MatMul", "Add"]


def test_matmul_behind_a_reshape_to_a_rank_that_nobody_knows_is_kept():
    def build(b: Builder) -> tuple[str, ...]:
        x = b.input(2, 12)
        shape = b.input("K", name="shape", elem=7)
        y = b.node("MatMul", b.node("Reshape", x, shape), b.const(b.values(3, 4)))
        b.shapes["y"] = (None, 4, None)
        return (b.bn(y, 4, out="y"),)

    b = Builder()
    assert outcomes(fold_of(b.model(*build(b)))) == [("kept", "AXIS_UNKNOWN")]


def test_matmul_by_a_stack_of_matrices_or_by_data_is_kept():
    def stack(b: Builder) -> str:
        return b.bn(b.node("MatMul", b.input(2, 4, 3), b.const(b.values(2, 3, 5))), 4)

    def vector(b: Builder) -> str:
        return b.bn(b.node("MatMul", b.input(2, 4, 3), b.const(b.values(3))), 4)

    def data(b: Builder) -> str:
        x = b.input(4, 4)
        return b.bn(b.node("MatMul", x, b.node("Tanh", x)), 4)

    def weight_first(b: Builder) -> str:
        return b.bn(b.node("MatMul", b.const(b.values(2, 3)), b.input(3, 4)), 4)

    assert outcomes(check(stack)) == [("kept", "NO_LINEAR_BEFORE")]
    assert outcomes(check(vector)) == [("kept", "NO_LINEAR_BEFORE")]
    assert outcomes(check(data)) == [("kept", "COMPUTED_WEIGHT")]
    assert outcomes(check(weight_first)) == [("kept", "COMPUTED_WEIGHT")]


# ---------------------------------------------------------------------------------- the weight itself


def test_a_weight_made_by_a_constant_node_and_identities_folds():
    def build(b: Builder) -> str:
        weight = b.node("Constant", value=b.tensor(b.values(4, 3, 2)))
        bias = b.node("Identity", b.node("Identity", b.const(b.values(4))))
        return b.bn(b.node("Conv", b.input(2, 3, 5), b.node("Identity", weight), bias), 4)

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["Conv"], "what only the old weight needed is gone"


@pytest.mark.parametrize("op", ["Mul", "Transpose", "Reshape"])
def test_a_computed_weight_is_kept(op):
    def build(b: Builder) -> str:
        w = b.const(b.values(3, 3, 2))
        match op:
            case "Mul":
                w = b.node("Mul", w, w)
            case "Transpose":
                w = b.node("Transpose", w, perm=[1, 0, 2])
            case _:
                w = b.node("Reshape", b.const(b.values(9, 2)), b.const(np.array([3, 3, 2])))
        return b.bn(b.node("Conv", b.input(2, 3, 5), w), 3)

    assert outcomes(check(build)) == [("kept", "COMPUTED_WEIGHT")]


@pytest.mark.parametrize("which", [("weight",), ("bias",), ("weight", "bias"), ("weight", "no bias")])
@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_a_parameter_stored_in_a_smaller_dtype_and_cast_is_kept(op, which):
    """Its folded values would be rounded to the smaller dtype, or the tensor would grow."""

    def build(b: Builder) -> str:
        def parameter(name: str, *shape: int) -> str:
            if name not in which:
                return b.const(b.values(*shape))
            return b.node("Cast", b.const(b.values(*shape), elem=HALF), to=b.elem)

        weight = parameter("weight", *((4, 3, 2) if op == "Conv" else (3, 4)))
        bias = [] if "no bias" in which else [parameter("bias", 4)]
        return b.bn(b.node(op, b.input(*((2, 3, 5) if op == "Conv" else (2, 3))), weight, *bias), 4)

    assert outcomes(check(build)) == [("kept", "COMPUTED_WEIGHT")]


def test_a_cast_to_the_same_dtype_changes_nothing():
    def build(b: Builder) -> str:
        weight = b.node("Cast", b.const(b.values(4, 3, 2)), to=b.elem)
        return b.bn(b.node("Conv", b.input(2, 3, 5), weight), 4)

    assert outcomes(check(build)) == FOLDED


def test_two_convolutions_of_one_weight_are_kept():
    def build(b: Builder) -> tuple[str, str]:
        x, w = b.input(2, 3, 5), b.const(b.values(3, 3, 1))
        return b.bn(b.node("Conv", x, w), 3), b.node("Conv", x, b.node("Identity", w))

    assert outcomes(check(build)) == [("kept", "COSTS_MORE")]


def test_one_bias_of_two_convolutions_does_not_keep_them_from_folding():
    def build(b: Builder) -> tuple[str, str]:
        x, bias = b.input(2, 3, 5), b.const(b.values(4))
        first = b.node("Conv", x, b.const(b.values(4, 3, 2)), bias)
        second = b.node("Conv", x, b.const(b.values(4, 3, 2)), bias)
        return b.bn(first, 4), b.node("Relu", second)

    assert outcomes(check(build)) == FOLDED


@pytest.mark.parametrize("names", [("shared", "shared"), ("", "")])
def test_two_norms_of_one_set_of_statistics_both_fold(names):
    def build(b: Builder) -> tuple[str, str]:
        x = b.input(2, 3, 5)
        parts = [b.const(part) for part in b.statistics(4)]
        return tuple(
            b.node("BatchNormalization", b.conv(x, (3, 4), (2,)), *parts, name=name, epsilon=0.01) for name in names
        )

    assert outcomes(check(build)) == FOLDED * 2


def test_a_convolution_without_channels_is_left_in_peace():
    def build(b: Builder) -> str:
        return b.bn(b.conv(b.input(2, 3, 5), (3, 0), (2,)), 0)

    b = Builder()
    assert len(outcomes(fold_of(b.model(build(b))))) == 1
