from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from parity_networks import Builder, Layer, fold, inputs_for, layers, single, small_cnn

from bnfold.errors import ParityError
from bnfold.parity.oracle import run_float64, widen
from bnfold.runtime import open_session, run

DOUBLE = onnx.TensorProto.DOUBLE
FLOAT = onnx.TensorProto.FLOAT


def one_node(
    op: str, x: Any, *constants: Any, elem: int = FLOAT, outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    names = [f"c{at}" for at in range(len(constants))]
    results = [f"y{at}" for at in range(outputs)]
    dtype = np.float32 if elem == FLOAT else np.float64
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], results, **attributes)],
        "one",
        [helper.make_tensor_value_info("x", elem, x.shape)],
        [helper.make_tensor_value_info(results[0], elem, None)]
        + [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in results[1:]],
        [numpy_helper.from_array(np.asarray(c, dtype), name) for c, name in zip(constants, names, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def integers(seed: int, *shape: int) -> Any:
    """Small whole numbers: float32 computes with them exactly, so that ONNX Runtime is an exact oracle."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def by_runtime(model: onnx.ModelProto, x: Any) -> dict[str, Any]:
    return run(open_session(model.SerializeToString(), optimise=False), {"x": x})


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    found = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(dims)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(dims)],
    }
    if draw(st.booleans()):
        found["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        found["dilations"] = [1] * dims
    else:
        found["pads"] = [draw(st.integers(0, k - 1)) for _ in range(2) for k in kernel]
    return found


@settings(max_examples=60, deadline=None)
@given(windows(), st.integers(1, 3), st.booleans(), st.integers(0, 999))
def test_conv_agrees_with_the_runtime_on_whole_numbers(
    place: dict[str, Any], groups: int, bias: bool, seed: int
) -> None:
    dims = len(place["kernel_shape"])
    x = integers(seed, 2, 2 * groups, *(7, 6, 8)[:dims])
    constants = [integers(seed + 1, 3 * groups, 2, *place["kernel_shape"])]
    constants += [integers(seed + 2, 3 * groups)] if bias else []
    model = one_node("Conv", x, *constants, group=groups, **place)
    assert np.array_equal(run_float64(model, {"x": x})["y0"], by_runtime(model, x)["y0"])


@settings(max_examples=60, deadline=None)
@given(windows(), st.integers(1, 3), st.booleans(), st.integers(0, 1), st.integers(0, 999))
def test_conv_transpose_agrees_with_the_runtime_on_whole_numbers(
    place: dict[str, Any], groups: int, bias: bool, extra: int, seed: int
) -> None:
    dims = len(place["kernel_shape"])
    x = integers(seed, 2, 2 * groups, *(4, 3, 5)[:dims])
    constants = [integers(seed + 1, 2 * groups, 3, *place["kernel_shape"])]
    constants += [integers(seed + 2, 3 * groups)] if bias else []
    if "auto_pad" not in place:
        place = {**place, "output_padding": [min(extra, stride - 1) for stride in place["strides"]]}
    elif place["auto_pad"] != "VALID":  # the runtime cannot enlarge: a kernel below its stride has no SAME padding
        place = {**place, "strides": [min(s, k) for s, k in zip(place["strides"], place["kernel_shape"], strict=True)]}
    model = one_node("ConvTranspose", x, *constants, group=groups, **place)
    assert np.array_equal(run_float64(model, {"x": x})["y0"], by_runtime(model, x)["y0"])


@settings(max_examples=60, deadline=None)
@given(windows(), st.booleans(), st.integers(0, 999))
def test_max_pool_agrees_with_the_runtime(place: dict[str, Any], ceil_mode: bool, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(2, 3, *(7, 6, 8)[: len(place["kernel_shape"])])).astype(np.float32)
    if "auto_pad" not in place:
        place = {**place, "ceil_mode": int(ceil_mode)}
    model = one_node("MaxPool", x, outputs=2, **place)
    ours, theirs = run_float64(model, {"x": x}), by_runtime(model, x)
    assert np.array_equal(ours["y0"], theirs["y0"])
    assert np.array_equal(ours["y1"], theirs["y1"])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_global_max_pool_agrees_with_the_runtime(dims: int) -> None:
    x = np.random.default_rng(dims).normal(size=(2, 3, *(7, 6, 8)[:dims])).astype(np.float32)
    model = one_node("GlobalMaxPool", x)
    assert np.array_equal(run_float64(model, {"x": x})["y0"], by_runtime(model, x)["y0"])


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_local_response_normalisation_agrees_with_the_runtime(size: int) -> None:
    x = np.random.default_rng(size).normal(size=(2, 6, 3, 4)).astype(np.float32) * 3
    model = one_node("LRN", x, size=size, alpha=0.5, beta=0.6, bias=2.0)
    difference = np.abs(run_float64(model, {"x": x})["y0"] - by_runtime(model, x)["y0"])
    assert difference.max() < 1e-5


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("opset", [9, 11, 13, 19])
def test_softmax_agrees_with_the_runtime_in_every_opset(op: str, axis: int | None, opset: int) -> None:
    if opset < 11 and axis == -1:
        pytest.skip("negative axes came with opset 11")
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 1)).astype(np.float32)
    model = one_node(op, x, **({} if axis is None else {"axis": axis}))
    model.opset_import[0].version = opset
    difference = np.abs(run_float64(model, {"x": x})["y0"] - by_runtime(model, x)["y0"])
    assert difference.max() < 1e-6


@settings(max_examples=60, deadline=None)
@given(windows(), st.booleans(), st.booleans(), st.integers(0, 999))
def test_average_pool_agrees_with_torch(place: dict[str, Any], ceil_mode: bool, counted: bool, seed: int) -> None:
    torch = pytest.importorskip("torch")
    dims = len(place["kernel_shape"])
    padding = [min(k // 2, 1) for k in place["kernel_shape"]]
    x = np.random.default_rng(seed).normal(size=(2, 3, *(7, 6, 8)[:dims]))
    model = one_node(
        "AveragePool", x, elem=DOUBLE, kernel_shape=place["kernel_shape"], strides=place["strides"],
        pads=padding * 2, ceil_mode=int(ceil_mode), count_include_pad=int(counted),
    )  # fmt: skip
    pool = getattr(torch.nn.functional, f"avg_pool{dims}d")
    wanted = pool(
        torch.from_numpy(x), place["kernel_shape"], place["strides"], padding, bool(ceil_mode), bool(counted)
    ).numpy()
    found = run_float64(model, {"x": x})["y0"]
    assert found.shape == wanted.shape
    assert np.max(np.abs(found - wanted)) < 1e-14


@settings(max_examples=40, deadline=None)
@given(layers())
def test_linears_agree_with_torch_in_float64(layer: Layer) -> None:
    torch = pytest.importorskip("torch")
    layer = Layer(**{**layer.__dict__, "norm": "none", "variance": 1.0})
    model = single(layer)
    x = inputs_for(model)["input"].astype(np.float64)
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).astype(np.float64)) for t in model.graph.initializer}
    weight, bias = tensors["layer.linear.weight"], tensors.get("layer.linear.bias")
    given_x = torch.from_numpy(x)
    if layer.kind in ("gemm", "matmul"):
        alpha, beta = (np.float32(layer.alpha), np.float32(layer.beta)) if layer.kind == "gemm" else (1, 1)
        weight = weight if layer.transposed and layer.kind == "gemm" else weight.T
        wanted = float(alpha) * (given_x @ weight.T) + (0 if bias is None else float(beta) * bias)
    else:
        name = "conv" if layer.kind == "conv" else "conv_transpose"
        function = getattr(torch.nn.functional, f"{name}{layer.dims}d")
        wanted = function(
            given_x, weight, bias, stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
            groups=layer.groups,
        )  # fmt: skip
    found = run_float64(model, {"input": x})["output"]
    assert found.shape == tuple(wanted.shape)
    assert np.max(np.abs(found - wanted.numpy()), initial=0.0) < 1e-12


def test_batch_norm_keeps_the_float32_epsilon_of_the_graph() -> None:
    x = np.array([[3.0]], np.float64)
    model = one_node("BatchNormalization", x, [1.0], [0.0], [0.0], [0.0], elem=DOUBLE, epsilon=1e-5)
    found = run_float64(model, {"x": x})["y0"]
    assert found[0, 0] == 3.0 / np.sqrt(np.float64(np.float32(1e-5)))


def test_the_truth_is_nearer_than_float32_by_orders_of_magnitude() -> None:
    """Run in float64 with doubled constants, the folded and the unfolded graph differ by the rounding of weights alone;
    two float64 runs of one function differ by 1e-12: so the truth's own error is far below float32's."""
    model = small_cnn(dtype="float64")
    x = inputs_for(model, batch=20)
    reference = run_float64(model, x)["output"]
    import onnx_ir as ir

    folded = run_float64(ir.to_proto(fold(model)[1]), x)["output"]
    assert np.max(np.abs(folded - reference)) < 1e-12 * np.max(np.abs(reference))


def test_widening_leaves_the_model_given_as_it_was() -> None:
    model = small_cnn()
    before = model.SerializeToString(deterministic=True)
    widen(model)
    assert model.SerializeToString(deterministic=True) == before


def test_widens_constants_casts_and_literals() -> None:
    build = Builder(np.random.default_rng(0))
    third = build.node("Constant", [], value_float=1 / 3)
    thirds = build.node("Constant", [], value_floats=[1 / 3, 2 / 3])
    shape = build.constant("shape", np.array([2], np.int64))
    zeros = build.node("ConstantOfShape", [shape])
    y = build.node("Cast", [build.node("Mul", ["input", third])], to=onnx.TensorProto.FLOAT16)
    y = build.node("Cast", [y], to=FLOAT)
    y = build.node("Add", [build.node("Add", [y, thirds]), zeros])
    model = build.model((None, 2), y, 2)
    x = np.array([[1.0, 1e-9]], np.float32)
    found = run_float64(model, {"input": x})["output"]
    third32 = np.float64(np.float32(1 / 3))
    assert np.array_equal(found, x.astype(np.float64) * third32 + [third32, np.float64(np.float32(2 / 3))])


def test_widens_the_branches_of_an_if() -> None:
    def branch(name: str, value: float) -> onnx.GraphProto:
        constant = helper.make_node(
            "Constant", [], [name], value=numpy_helper.from_array(np.array([value], np.float32))
        )
        return helper.make_graph([constant], name, [], [helper.make_tensor_value_info(name, FLOAT, [1])])

    chosen = helper.make_node(
        "If", ["flag"], ["chosen"], then_branch=branch("then", 1 / 3), else_branch=branch("else", 1 / 7)
    )
    graph = helper.make_graph(
        [chosen, helper.make_node("Add", ["x", "chosen"], ["y"])],
        "conditional",
        [helper.make_tensor_value_info("x", FLOAT, [1])],
        [helper.make_tensor_value_info("y", FLOAT, [1])],
        [numpy_helper.from_array(np.array(False), "flag")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    found = run_float64(model, {"x": np.array([1e-12], np.float32)})["y"]
    assert found[0] == np.float64(np.float32(1e-12)) + np.float64(np.float32(1 / 7))


@pytest.mark.parametrize("op", ["RandomNormalLike", "QuantizeLinear", "AffineGrid"])
def test_refuses_operators_without_a_float64_truth(op: str) -> None:
    x = np.zeros((2, 2), np.float32)
    model = one_node(op, x)
    with pytest.raises(ParityError, match=op):
        run_float64(model, {"x": x})


def test_says_which_input_is_missing() -> None:
    with pytest.raises(ParityError, match="no input 'input'"):
        run_float64(small_cnn(), {"image": np.zeros((1, 1, 8, 8), np.float32)})


def test_a_graph_that_cannot_run_is_one_sentence() -> None:
    with pytest.raises(ParityError, match="cannot be evaluated in float64"):
        run_float64(small_cnn(), {"input": np.zeros((1, 3, 8, 8), np.float32)})
