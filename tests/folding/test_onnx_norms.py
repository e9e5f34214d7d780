"""Every spelling of a norm in ONNX, behind a convolution or a matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_networks import DOUBLE, FOLDED, HALF, Builder, built, check, close, evaluate, feeds, fold_of, ops, outcomes

from bnfold.folding import onnx_file, onnx_graph
from bnfold.folding.statistics import tensors_of

EPS = 0.0078125

# ---------------------------------------------------------------------------------- hand-written


def per_channel(b: Builder, values: Any, form: str) -> str:
    """A vector over channels as something that broadcasts against (N, C, L)."""
    match form:
        case "stored":
            return b.const(values[:, None])
        case "with a batch axis":
            return b.const(values[None, :, None])
        case "Constant node":
            return b.node("Constant", value=b.tensor(values[:, None]))
        case "Constant floats, reshaped":
            flat = b.node("Constant", value_floats=[float(v) for v in values])
            if b.elem == DOUBLE:
                flat = b.node("Cast", flat, to=DOUBLE)
            return b.node("Reshape", flat, b.node("Constant", value_ints=[1, -1, 1]))
        case "Unsqueeze":
            return b.node("Unsqueeze", b.const(values), b.const(np.array([0, 2])))
        case "Unsqueeze from behind":
            return b.node("Unsqueeze", b.const(values), b.const(np.array([-1])))
        case "Identity":
            return b.node("Identity", b.node("Identity", b.const(values[:, None])))
        case "Squeeze":
            return b.node("Squeeze", b.const(values[None, :, None]), b.const(np.array([0])))
    raise ValueError(form)


FORMS = [
    "stored", "with a batch axis", "Constant node", "Constant floats, reshaped", "Unsqueeze", "Unsqueeze from behind",
    "Identity", "Squeeze",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_store_a_vector_over_channels(form):
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        gamma, beta, mean, variance = b.statistics(4)
        y = b.node("Sub", y, per_channel(b, mean, form))
        y = b.node("Div", y, per_channel(b, variance, form))
        y = b.node("Mul", y, per_channel(b, gamma, form))
        return b.node("Add", y, per_channel(b, beta, form))

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["Conv"], "what only the norm needed is gone"
    assert len(result.model.graph.initializer) == 2


def inv_std(b: Builder, variance: Any, form: str) -> str:
    v, eps = b.const(variance[:, None]), b.const(np.asarray(EPS))
    total = b.node("Add", eps, v) if "eps first" in form else b.node("Add", v, eps)
    match form.split(",")[0]:
        case "Pow -0.5":
            return b.node("Pow", total, b.const(np.asarray(-0.5)))
        case "Pow 0.5, Reciprocal" | "Pow 0.5":
            return b.node("Reciprocal", b.node("Pow", total, b.const(np.asarray(0.5))))
        case "Sqrt":
            return b.node("Reciprocal", b.node("Sqrt", total))
        case "one over":
            return b.node("Div", b.const(np.asarray(1.0)), b.node("Sqrt", total))
        case "Sqrt of Reciprocal":
            return b.node("Sqrt", b.node("Reciprocal", total))
    raise ValueError(form)


@pytest.mark.parametrize("form", ["Pow -0.5", "Pow 0.5", "Sqrt", "Sqrt, eps first", "one over", "Sqrt of Reciprocal"])
@pytest.mark.parametrize("linear", ["conv", "matmul"])
def test_every_way_to_write_the_reciprocal_root(form, linear):
    def build(b: Builder) -> str:
        gamma, beta, mean, variance = b.statistics(4)
        if linear == "conv":
            y = b.conv(b.input(2, 3, 4), (3, 4), (1,))
            y = b.node("Sub", y, b.const(mean[:, None]))
            y = b.node("Mul", y, inv_std(b, variance, form))
            y = b.node("Mul", y, b.const(gamma[:, None]))
            return b.node("Add", y, b.const(beta[:, None]))
        y = b.node("MatMul", b.input(2, 5, 3), b.const(b.values(3, 4)))
        y = b.node("Add", y, b.node("Neg", b.const(mean)))
        factor = b.node("Reshape", inv_std(b, variance, form), b.const(np.array([-1])))
        y = b.node("Mul", factor, y)
        return b.node("Add", b.const(beta), b.node("Mul", b.const(gamma), y))

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == (["Conv"] if linear == "conv" else ["MatMul", "Add"])


def test_the_whole_map_computed_from_statistics_beforehand():
    """scale = gamma / sqrt(var + eps), shift = beta - mean * scale, written as nodes over constants."""

    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        gamma, beta, mean, variance = (b.const(part) for part in b.statistics(4))
        deviation = b.node("Sqrt", b.node("Add", variance, b.const(np.asarray(EPS))))
        scale = b.node("Div", gamma, deviation)
        shift = b.node("Sub", beta, b.node("Mul", mean, scale))
        axes = b.const(np.array([1]))
        y = b.node("Mul", y, b.node("Unsqueeze", scale, axes))
        return b.node("Add", y, b.node("Unsqueeze", shift, axes))

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["Conv"]


@pytest.mark.parametrize("exponent", [2.0, -1.0, 1.0, 0.25])
def test_another_power_than_a_root_is_no_constant(exponent):
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        variance = b.const(b.values(4, 1, positive=True))
        return b.bn(b.node("Div", y, b.node("Pow", variance, b.const(np.asarray(exponent)))), 4)

    assert outcomes(check(build)) == [("kept", "NO_LINEAR_BEFORE")]


@pytest.mark.parametrize("through", [HALF, TensorProto.INT32, TensorProto.BFLOAT16])
def test_a_constant_that_was_cast_to_fewer_bits_and_back_is_none(through):
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        stored = b.const(np.asarray([[1.1], [2.3], [-3.7], [5.9]]))
        rounded = b.node("Cast", b.node("Cast", stored, to=through), to=b.elem)
        return b.bn(b.node("Mul", y, rounded), 4)

    assert outcomes(check(build, runtime=through != TensorProto.BFLOAT16)) == [("kept", "NO_LINEAR_BEFORE")]


@pytest.mark.parametrize("op", ["Sub", "Div"])
def test_a_constant_minus_the_data_or_divided_by_it_is_no_step(op):
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        y = b.node("Mul", y, b.const(b.values(4, 1, positive=True)))
        y = b.node("Add", y, b.const(np.full((4, 1), 30.0)))
        return b.node("Mul", b.node(op, b.const(b.values(4, 1)), y), b.const(b.values(4, 1)))

    assert outcomes(check(build)) == [("folded", ""), ("kept", "NO_LINEAR_BEFORE")]


# ---------------------------------------------------------------------------------- the axis of a constant


@pytest.mark.parametrize(
    ("shape", "folds"),
    [
        ((4, 1, 1), True),
        ((1, 4, 1, 1), True),
        ((1, 1, 1, 4), False),
        ((4,), False),
        ((1, 4, 1), False),
        ((4, 4), False),
        ((1, 4, 4), False),
        ((2, 1, 1, 1), False),
        ((2, 4, 1, 1), False),
        ((1,), True),
        ((1, 1, 1, 1), True),
    ],
)
def test_a_constant_is_taken_for_channels_only_where_it_runs_over_them(shape, folds):
    """Channels, height and width are all 4."""

    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 4, 4), (3, 4), (1, 1))
        y = b.node("Mul", y, b.const(b.values(*shape, positive=True)))
        y = b.node("Add", y, b.const(b.values(*shape)))
        return b.node("BatchNormalization", y, *(b.const(part) for part in b.statistics(4)), epsilon=EPS)

    result = check(build)
    if folds:
        assert {outcome for outcome, _ in outcomes(result)} == {"folded"}
        assert ops(result.model) == ["Conv"]
    else:
        assert all(outcome == "kept" for outcome, _ in outcomes(result))


def test_a_constant_that_makes_the_data_larger_is_no_step():
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 1), (1,))
        return b.bn(b.node("Mul", y, b.const(b.values(4, 1))), 4)

    def rank(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (1,))
        return b.node("Mul", y, b.const(b.values(3, 1, 4, 1)))

    assert outcomes(check(build)) == [("kept", "NO_LINEAR_BEFORE")]
    assert outcomes(check(rank)) == []


def test_a_constant_over_an_axis_of_unknown_size_is_no_step():
    def build(b: Builder) -> str:
        y = b.node("MatMul", b.input("N", "T", 3), b.const(b.values(3, 4)))
        y = b.node("Mul", y, b.const(b.values(2, 1)))
        return b.node("Mul", y, b.const(b.values(4)))

    assert [code for _, code in outcomes(check(build))] == ["NO_LINEAR_BEFORE"]


def test_scalar_steps_fold_at_any_rank():
    def build(b: Builder) -> str:
        y = b.conv(b.input("N", 3, "H", "W"), (3, 4), (1, 1))
        y = b.node("Div", b.node("Sub", y, b.const(np.asarray(0.5))), b.const(np.asarray(0.25)))
        return b.node("Tanh", y)

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["Conv", "Tanh"]


def test_integers_are_left_alone():
    b = Builder()
    y = b.node("Mul", b.node("Add", b.input(2, 3, elem=6), b.const(np.arange(3, dtype=np.int32))), "k")
    b.initializers.append(b.tensor(np.full(3, 2, np.int32), "k"))
    z = b.bn(b.node("Cast", y, to=b.elem), 3)
    result = fold_of(b.model(z))
    assert outcomes(result) == [("kept", "NO_LINEAR_BEFORE")]
    assert ops(result.model) == ["Add", "Mul", "Cast", "BatchNormalization"]


# ---------------------------------------------------------------------------------- BatchNormalization


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 12, 13, 14, 15, 18, 21, 22, 23, 24, 25, 26])
def test_every_opset(opset):
    def build(b: Builder) -> str:
        y = b.node("Relu", b.bn(b.conv(b.input(2, 3, 5), (3, 4), (2,)), 4))
        return b.bn(b.node("Identity", b.conv(y, (4, 4), (1,))), 4)

    result = check(build, opset=opset, ir_version=3 if opset == 7 else 10)
    assert outcomes(result) == FOLDED * 2
    assert result.model.opset_import[0].version == opset


def test_the_default_epsilon_is_the_one_of_the_specification():
    def build(b: Builder) -> str:
        parts = b.statistics(4)
        parts[3] = np.asarray([1e-5, 0.0, 2.0**-16, 1.0])
        return b.node("BatchNormalization", b.conv(b.input(2, 3, 5), (3, 4), (2,)), *map(b.const, parts))

    assert outcomes(check(build, runtime=False)) == FOLDED


def test_an_epsilon_of_zero_is_a_value():
    def build(b: Builder) -> str:
        parts = b.statistics(4)
        parts[3] = np.asarray([2.0**-20, 0.5, 2.0, 1.0])
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        return b.node("BatchNormalization", y, *map(b.const, parts), epsilon=0.0)

    assert outcomes(check(build)) == FOLDED


@pytest.mark.parametrize("count", [2, 3, 7])
def test_norms_in_a_row_go_into_one_linear(count):
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        for _ in range(count):
            y = b.bn(y, 4)
        return y

    result = check(build)
    assert outcomes(result) == FOLDED * count
    assert ops(result.model) == ["Conv"]


def test_statistics_may_be_computed_from_constants():
    def build(b: Builder) -> str:
        gamma, beta, mean, variance = (b.const(part) for part in b.statistics(4))
        total = b.node("Add", variance, b.const(np.asarray(EPS)))
        one_by_four = b.node("Reshape", gamma, b.const(np.array([1, 4])))
        flat = b.node("Squeeze", one_by_four, b.const(np.array([0])))
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        return b.node("BatchNormalization", y, flat, b.node("Neg", beta), mean, total)

    result = check(build)
    assert outcomes(result) == FOLDED
    assert ops(result.model) == ["Conv"]


def test_a_norm_whose_statistics_are_data_is_refused_and_reads_them():
    """The mean of the second norm is what the first linear gives, unnormalised."""

    def build(b: Builder) -> tuple[str, str]:
        y = b.node("MatMul", b.input(3), b.const(b.values(3, 4)))
        normed = b.node("Add", b.node("Mul", y, b.const(b.values(4))), b.const(b.values(4)))
        gamma, beta, _, variance = (b.const(part) for part in b.statistics(4))
        z = b.conv(b.input(2, 3, 5, name="z"), (3, 4), (1,))
        return normed, b.node("BatchNormalization", z, gamma, beta, y, variance)

    assert outcomes(check(build)) == [("kept", "OTHER_READER"), ("refused", "COMPUTED_STATISTICS")]


def test_a_norm_in_training_mode_is_refused():
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        names = [b.const(part) for part in b.statistics(4)]
        b.nodes.append(
            helper.make_node("BatchNormalization", [y, *names], ["y", "mean", "variance"], training_mode=1, epsilon=EPS)
        )
        return b.bn(b.conv("y", (4, 4), (1,)), 4)

    b = Builder()
    result = fold_of(b.model(build(b)))
    assert outcomes(result) == [("refused", "TRAINING_MODE"), ("folded", "")]
    assert ops(result.model) == ["Conv", "BatchNormalization", "Conv"]


@pytest.mark.parametrize("opset", [7, 9, 13])
@pytest.mark.parametrize("read", [False, True])
def test_more_than_one_output_means_training_before_opset_14(opset, read):
    """BatchNormalization-7 and -9: five outputs in training mode, one in test mode; nobody need read them."""

    def build(b: Builder) -> tuple[str, ...]:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        names = [b.const(part) for part in b.statistics(4)]
        outs = ["y", "mean", "variance", "saved_mean", "saved_variance"]
        b.nodes.append(helper.make_node("BatchNormalization", [y, *names], outs, name="bn"))
        b.shapes |= {"y": (2, 4, 4), "mean": (4,)}
        return ("y", "mean") if read else ("y",)

    b = Builder(opset=opset)
    result = fold_of(b.model(*build(b)))
    assert outcomes(result) == [("refused", "TRAINING_MODE")]
    assert ops(result.model) == ["Conv", "BatchNormalization"]


def test_outputs_that_are_left_out_by_an_empty_name_mean_nothing():
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        names = [b.const(part) for part in b.statistics(4)]
        b.nodes.append(helper.make_node("BatchNormalization", [y, *names], ["y", "", ""], epsilon=EPS))
        b.shapes["y"] = (2, 4, 4)
        return "y"

    assert outcomes(check(build, opset=15, runtime=False)) == FOLDED


def test_a_norm_of_each_activation_is_kept():
    """spatial = 0 of opset 7: statistics of shape (C, L)."""
    b = Builder(opset=7)
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    names = [b.const(b.values(4, 4, positive=True)) for _ in range(4)]
    z = b.node("BatchNormalization", y, *names, spatial=0)
    result = fold_of(b.model(z))
    assert outcomes(result) == [("kept", "PER_ACTIVATION")]


def test_a_norm_of_each_activation_with_statistics_over_channels_is_kept_too():
    b = Builder(opset=7)
    y = b.node("Gemm", b.input(2, 3), b.const(b.values(3, 4)), b.const(b.values(4)))
    z = b.node("BatchNormalization", y, *(b.const(part) for part in b.statistics(4)), spatial=0)
    assert outcomes(fold_of(b.model(z))) == [("kept", "PER_ACTIVATION")]


@pytest.mark.parametrize(
    ("part", "value", "code"),
    [
        (3, np.nan, "NON_FINITE_STATISTICS"),
        (2, np.inf, "NON_FINITE_STATISTICS"),
        (3, -0.25, "NEGATIVE_VARIANCE"),
        (3, 0.0, "NON_FINITE_FOLD"),
    ],
)
def test_statistics_that_are_no_finite_map_are_refused(part, value, code):
    b = Builder()
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    parts = b.statistics(4)
    parts[part][2] = value
    result = fold_of(b.model(b.node("BatchNormalization", y, *map(b.const, parts), epsilon=0.0)))
    assert outcomes(result) == [("refused", code)]
    assert ops(result.model) == ["Conv", "BatchNormalization"]


@pytest.mark.parametrize("wrong", [0, 1, 2, 3])
def test_statistics_of_different_lengths_are_kept(wrong):
    b = Builder()
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    parts = b.statistics(4)
    parts[wrong] = parts[wrong][:1]
    b.shapes["y"] = (2, 4, 4)
    model = b.model(b.node("BatchNormalization", y, *map(b.const, parts), out="y"), check=False)
    folded, report, _ = onnx_graph.fold(onnx_file._from_proto(model, "it"))
    assert [(row.outcome, row.reason) for row in report.norms] == [("kept", "MALFORMED")]
    assert [node.op_type for node in folded.graph] == ["Conv", "BatchNormalization"]


# ---------------------------------------------------------------------------------- other dtypes


@pytest.mark.parametrize("elem", [HALF, DOUBLE, 16])
def test_a_dtype_stays_what_it_was(elem):
    def build(b: Builder) -> str:
        y = b.node("Relu", b.bn(b.conv(b.input(2, 3, 5), (3, 4), (2,), bias=False), 4))
        return b.bn(b.node("MatMul", b.node("Reshape", y, b.const(np.array([2, 16]))), b.const(b.values(16, 3))), 3)

    wide, narrow = built(build, DOUBLE), built(build, elem, opset=22, ir_version=10)
    result = fold_of(narrow)
    assert outcomes(result) == FOLDED * 2
    stored = {tensor.name: tensor for tensor in result.model.graph.initializer}
    assert {stored[entry["tensor"]].data_type for entry in result.fold_map} == {elem}
    # The numbers: the narrow fold's weights in the float64 graph, to what the dtype can hold.
    inputs = feeds(wide)
    bound = {HALF: 4e-3, DOUBLE: 1e-11, 16: 3e-2}[elem]
    assert close(evaluate(widened(result.model), inputs), evaluate(wide, inputs), bound)


def widened(model: Any) -> Any:
    """The same numbers in a float64 graph."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.INT64:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.elem_type = DOUBLE
    del copy.graph.value_info[:]
    return copy


def test_half_precision_that_would_overflow_is_kept():
    b = Builder(HALF)
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    parts = b.statistics(4)
    parts[0][1], parts[3][1] = 40.0, 0.0
    y = b.node("BatchNormalization", y, *map(b.const, parts), epsilon=1e-7)
    assert outcomes(fold_of(b.model(y))) == [("kept", "OVERFLOW")]


def test_statistics_in_float32_behind_a_half_precision_layer_fold_into_half_precision():
    b = Builder(HALF)
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    names = [b.const(part, elem=1) for part in b.statistics(4)]
    model = b.model(b.node("BatchNormalization", y, *names, epsilon=EPS))
    result = fold_of(model)
    assert outcomes(result) == FOLDED
    assert {tensor.data_type for tensor in result.model.graph.initializer} == {HALF}


def test_the_statistics_of_a_norm_come_out_as_they_were_stored():
    b = Builder()
    y = b.bn(b.conv(b.input(2, 3, 5), (3, 4), (2,)), 4)
    (norm,) = onnx_graph.plan(onnx_file.from_proto(b.model(y))).norms
    stored = tensors_of(norm)
    arrays = [np.frombuffer(t.raw_data, np.float32) for t in b.initializers[-4:]]
    for key, array in zip(("gamma", "beta", "mean", "variance"), arrays, strict=True):
        assert stored[key].dtype == np.float32
        assert np.array_equal(stored[key], array)
    assert stored["eps"] == np.float32(1e-3)
