from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from parity_moves import MAKES, Make, network
from parity_networks import Layer, fold, inputs_for, layers, single, small_cnn, spellings

from bnfold.errors import ParityError
from bnfold.parity.oracle import run_float64
from bnfold.runtime import open_session, run

torch = pytest.importorskip("torch")
from bnfold.parity.torch_float64 import TorchGraph  # noqa: E402 - it needs torch

FLOAT = onnx.TensorProto.FLOAT
BOUND = 1e-12  # relative to the largest output


def one_node(op: str, x: Any, *constants: Any, opset: int = 19, outputs: int = 1, **attributes: Any) -> onnx.ModelProto:
    """x in, constants as initialisers (None for one left out), of their own dtypes."""
    names = ["" if c is None else f"c{place}" for place, c in enumerate(constants)]
    results = [f"y{place}" for place in range(outputs)]
    stored = [numpy_helper.from_array(np.asarray(c), name) for c, name in zip(constants, names, strict=True) if name]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], results, name="it", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in results],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def agrees(model: onnx.ModelProto, inputs: dict[str, Any]) -> None:
    wanted, found = run_float64(model, inputs), TorchGraph(model).truth(inputs)
    assert set(wanted) == set(found)
    for name, array in wanted.items():
        assert found[name].shape == array.shape, name
        assert np.isfinite(array).all(), name
        assert np.max(np.abs(found[name] - array), initial=0.0) <= BOUND * np.max(np.abs(array), initial=0.0), name


def as_runtime(model: onnx.ModelProto, x: Any, bound: float) -> None:
    """For what the reference evaluator has wrong, or in float32 alone."""
    wanted = run(open_session(model.SerializeToString(), optimise=False), {"x": x})["y0"]
    found = TorchGraph(model).truth({"x": x})["y0"]
    assert found.shape == wanted.shape
    assert np.max(np.abs(found - wanted)) <= bound * np.max(np.abs(wanted))


def normal(*shape: int, seed: int = 0) -> Any:
    return (3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


X = normal(2, 4, 6, 8)
POSITIVE = np.abs(X) + np.float32(0.1)
F = np.float32

UNARY = (
    "Abs", "Neg", "Exp", "Sin", "Cos", "Floor", "Ceil", "Sign", "Identity", "Relu", "Sigmoid", "Tanh",
    "Softplus", "Softsign", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid", "HardSwish", "Mish",
    "Dropout", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Transpose", "Softmax", "LogSoftmax",
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ArgMax", "ArgMin", "Shape", "Size",
)  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_an_operator_with_the_attributes_of_its_schema(op: str) -> None:
    agrees(one_node(op, X), {"x": X})


@pytest.mark.parametrize("op", ["Sqrt", "Log", "Reciprocal", "ReduceLogSum", "ReduceLogSumExp"])
def test_an_operator_of_positive_numbers(op: str) -> None:
    agrees(one_node(op, POSITIVE), {"x": POSITIVE})


CASES: dict[str, tuple[Any, ...]] = {
    "add": ("Add", X, normal(4, 1, 1)),
    "sub": ("Sub", X, normal(8)),
    "mul": ("Mul", X, normal(2, 1, 6, 8)),
    "div": ("Div", X, POSITIVE),
    "power": ("Pow", POSITIVE, F(1.7)),
    "power of an integer": ("Pow", X, np.int64(2)),
    "least": ("Min", X, normal(4, 1, 1), F(0.5)),
    "most": ("Max", X, normal(4, 1, 1)),
    "sum of three": ("Sum", X, normal(8), X),
    "mean of three": ("Mean", X, normal(8), X),
    "clip": ("Clip", X, F(0), F(6)),
    "clip above alone": ("Clip", X, None, F(0.5)),
    "slopes": ("PRelu", X, normal(4, 1, 1)),
    "gelu": ("Gelu", X, {"opset": 20}),
    "gelu by tanh": ("Gelu", X, {"opset": 20, "approximate": "tanh"}),
    "slope": ("LeakyRelu", X, {"alpha": 0.3}),
    "elu": ("Elu", X, {"alpha": 0.3}),
    "celu": ("Celu", X, {"alpha": 0.3}),
    "hard sigmoid": ("HardSigmoid", X, {"alpha": 0.3, "beta": 0.6}),
    "softmax over channels": ("Softmax", X, {"axis": 1}),
    "softmax in logarithms": ("LogSoftmax", X, {"axis": 1}),
    "mean over axes": ("ReduceMean", X, ints(2, 3), {"keepdims": 0, "opset": 18}),
    "mean over axes of old": ("ReduceMean", X, {"axes": [-1], "keepdims": 1, "opset": 11}),
    "sum over nothing": ("ReduceSum", X, ints(), {"noop_with_empty_axes": 1}),
    "largest over an axis": ("ReduceMax", X, ints(-2), {"keepdims": 0, "opset": 18}),
    "argmax of an axis": ("ArgMax", X, {"axis": 1, "keepdims": 0}),
    "reshape": ("Reshape", X, ints(0, -1, 8)),
    "flatten at 2": ("Flatten", X, {"axis": 2}),
    "flatten at -1": ("Flatten", X, {"axis": -1}),
    "squeeze": ("Squeeze", X[:, :1], ints(1)),
    "squeeze all": ("Squeeze", X[:1, :1]),
    "unsqueeze": ("Unsqueeze", X, ints(0, -1)),
    "unsqueeze of old": ("Unsqueeze", X, {"axes": [1, 3], "opset": 11}),
    "transpose": ("Transpose", X, {"perm": [0, 2, 3, 1]}),
    "concat": ("Concat", X, normal(2, 3, 6, 8), {"axis": 1}),
    "slice": ("Slice", X, ints(1, -6), ints(3, 2**40), ints(1, 3), ints(1, 2)),
    "slice backwards": ("Slice", X, ints(-1), ints(-(2**40)), ints(2), ints(-2)),
    "slice of old": ("Slice", X, {"starts": [1], "ends": [3], "axes": [1], "opset": 9}),
    "gather": ("Gather", X, np.array([[0, -1], [2, 2]]), {"axis": 1}),
    "gather one": ("Gather", X, np.int64(-2), {"axis": 2}),
    "expand": ("Expand", X[:, :1], ints(2, 5, 1, 1)),
    "tile": ("Tile", X, ints(1, 2, 1, 3)),
    "pad": ("Pad", X, ints(0, 0, 1, 2, 0, 0, 3, 0), F(0.7)),
    "pad by reflection": ("Pad", X, ints(0, 0, 1, 2, 0, 0, 3, 0), {"mode": "reflect"}),
    "pad by the edge": ("Pad", X, ints(0, 0, 1, 2, 0, 0, 3, 0), {"mode": "edge"}),
    "pad some axes": ("Pad", X, ints(1, 2), F(0.0), ints(-1), {"opset": 18}),
    "pad of old": ("Pad", X, {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 0.3, "opset": 10}),
    "depth to space": ("DepthToSpace", X, {"blocksize": 2}),
    "depth to space by columns": ("DepthToSpace", X, {"blocksize": 2, "mode": "CRD"}),
    "space to depth": ("SpaceToDepth", X, {"blocksize": 2}),
    "layer norm": ("LayerNormalization", X, normal(8), normal(8), {"epsilon": 1e-3}),
    "layer norm of two axes": ("LayerNormalization", X, normal(6, 8), {"axis": 2}),
    "instance norm": ("InstanceNormalization", X, normal(4), normal(4), {"epsilon": 1e-3}),
    "batch norm": ("BatchNormalization", X, normal(4), normal(4), normal(4), POSITIVE[0, :, 0, 0], {"epsilon": 1e-3}),
    "batch norm by default": ("BatchNormalization", X, normal(4), normal(4), normal(4), POSITIVE[0, :, 0, 0]),
    "gemm": ("Gemm", X[0, 0], normal(5, 6), normal(5), {"transA": 1, "transB": 1, "alpha": 0.7, "beta": -0.3}),
    "gemm without bias": ("Gemm", X[0, 0], normal(8, 5)),
    "matmul": ("MatMul", X, normal(8, 5)),
    "cast": ("Cast", X, {"to": onnx.TensorProto.INT64}),
    "cast to half": ("Cast", X, {"to": onnx.TensorProto.FLOAT16}),
    "global average": ("GlobalAveragePool", X),
    "shape from 1": ("Shape", X, {"start": 1, "end": 3}),
    "einsum": ("Einsum", X, normal(8, 3), {"equation": "bchw,wd->bdhc"}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
def test_agrees_with_the_oracle(name: str) -> None:
    op, x, *rest = CASES[name]
    attributes: dict[str, Any] = rest.pop() if rest and isinstance(rest[-1], dict) else {}
    agrees(one_node(op, x, *rest, **attributes), {"x": x})


@pytest.mark.parametrize(
    ("op", "constants", "attributes"),
    [
        ("Softmax", (), {"axis": 2, "opset": 11}), ("LRN", (), {"size": 3, "alpha": 0.3, "beta": 0.6, "bias": 1.2}),
        ("Pad", (ints(0, 0, -1, 2, 0, 0, 1, -2),), {}),
    ],
)  # fmt: skip
def test_what_the_reference_evaluator_has_wrong(op: str, constants: Any, attributes: dict[str, Any]) -> None:
    as_runtime(one_node(op, X, *constants, **attributes), X, 1e-6)


def test_the_error_function_in_float64() -> None:
    """The reference evaluator of onnx 1.23 rounds it to float32; the oracle has its own."""
    wanted = np.array([math.erf(float(x)) for x in X.reshape(-1)]).reshape(X.shape)
    model = one_node("Erf", X)
    for found in (TorchGraph(model).truth({"x": X})["y0"], run_float64(model, {"x": X})["y0"]):
        assert np.max(np.abs(found - wanted)) < 1e-15


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons_choose(op: str) -> None:
    y = np.where(np.random.default_rng(1).random(X.shape) < 0.5, X, -X)
    compared = helper.make_node(op, ["x", "c"], ["which"])
    chosen = helper.make_node("Where", ["which", "x", "d"], ["y0"])
    model = one_node("Identity", X, y, normal(8))
    del model.graph.node[:]
    model.graph.node.extend([compared, chosen])
    for tensor, name in zip(model.graph.initializer, ("c", "d"), strict=True):
        tensor.name = name
    agrees(model, {"x": X})


@pytest.mark.parametrize(
    ("constants", "outputs", "attributes"),
    [
        ((ints(1, 3),), 2, {"axis": 1}), ((), 2, {"axis": 3}), ((), 3, {"axis": 1, "num_outputs": 3, "opset": 18}),
        ((), 2, {"axis": 1, "split": [1, 3], "opset": 11}),
    ],
)  # fmt: skip
def test_splits(constants: Sequence[Any], outputs: int, attributes: dict[str, Any]) -> None:
    agrees(one_node("Split", X, *constants, outputs=outputs, **{"opset": 13, **attributes}), {"x": X})


def test_group_norm_of_both_kinds() -> None:
    def wanted(x: Any, scale: Any, bias: Any) -> Any:
        parts = x.astype(np.float64).reshape(2, 2, -1)
        y = (parts - parts.mean(-1, keepdims=True)) / np.sqrt(parts.var(-1, keepdims=True) + float(F(1e-5)))
        return y.reshape(x.shape) * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)

    scale, bias = normal(4), normal(4, seed=1)
    found = TorchGraph(one_node("GroupNormalization", X, scale, bias, num_groups=2, opset=21)).truth({"x": X})["y0"]
    assert np.max(np.abs(found - wanted(X, scale, bias))) < 1e-12
    model = one_node("GroupNormalization", X, scale[:2], bias[:2], num_groups=2, opset=18)
    found = TorchGraph(model).truth({"x": X})["y0"]
    assert np.max(np.abs(found - wanted(X, np.repeat(scale[:2], 2), np.repeat(bias[:2], 2)))) < 1e-12


MODES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]


def resize(x: Any, scales: Sequence[float], by_sizes: bool, attributes: dict[str, Any]) -> onnx.ModelProto:
    if by_sizes:
        sizes = ints(*x.shape[:2], *(max(1, int(size * s)) for size, s in zip(x.shape[2:], scales, strict=True)))
        return one_node("Resize", x, None, None, sizes, **attributes)
    return one_node("Resize", x, None, np.array([1, 1, *scales], np.float32), **attributes)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["nearest", "linear"]), st.sampled_from(MODES), st.booleans(),
    st.tuples(*[st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0])] * 2),
    st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
)  # fmt: skip
def test_resizes_by_whole_sizes(
    mode: str, coordinates: str, by_sizes: bool, scales: tuple[float, ...], nearest: str
) -> None:
    x = normal(1, 2, 4, 8)
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    agrees(resize(x, scales, by_sizes, attributes), {"x": x})


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["linear", "cubic"]), st.sampled_from(MODES), st.booleans(),
    st.tuples(st.sampled_from([0.5, 0.6, 1.0, 1.7, 2.0]), st.sampled_from([0.5, 0.9, 1.0, 2.0, 2.5])),
    st.sampled_from([-0.75, -0.5]), st.booleans(),
)  # fmt: skip
def test_resizes_as_the_runtime_does(
    mode: str, coordinates: str, by_sizes: bool, scales: tuple[float, ...], steep: float, outside: bool
) -> None:
    """Cubic weights and sizes that are cut are float32 in the reference evaluator, or not what the runtime does."""
    x = normal(1, 2, 5, 7)
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "cubic":
        attributes |= {"cubic_coeff_a": steep, "exclude_outside": int(outside)}
    as_runtime(resize(x, scales, by_sizes, attributes), x, 1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsamples_as_the_runtime_does(mode: str) -> None:
    x = np.round(normal(1, 2, 5, 7) * 4)
    as_runtime(one_node("Upsample", x, np.array([1, 1, 2, 4], np.float32), opset=9, mode=mode), x, 0.0)


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


@settings(max_examples=80, deadline=None)
@given(windows(), st.sampled_from([(1, 2), (3, 2), (4, 1)]), st.booleans(), st.integers(0, 999))
def test_convolves(place: dict[str, Any], width: tuple[int, int], bias: bool, seed: int) -> None:
    """Four groups of one channel each go another way: once with one output each, once with three."""
    groups, each = width
    dims, outputs = len(place["kernel_shape"]), groups * (1 if seed % 2 else 3)
    x = normal(2, each * groups, *(7, 6, 8)[:dims], seed=seed)
    constants = [normal(outputs, each, *place["kernel_shape"], seed=seed + 1)]
    constants += [normal(outputs, seed=seed + 2)] if bias else []
    agrees(one_node("Conv", x, *constants, group=groups, **place), {"x": x})


@settings(max_examples=80, deadline=None)
@given(windows(), st.integers(1, 3), st.booleans(), st.integers(0, 1), st.integers(0, 999))
def test_convolves_transposed(place: dict[str, Any], groups: int, bias: bool, extra: int, seed: int) -> None:
    dims = len(place["kernel_shape"])
    x = normal(2, 2 * groups, *(4, 3, 5)[:dims], seed=seed)
    constants = [normal(2 * groups, 3, *place["kernel_shape"], seed=seed + 1)]
    constants += [normal(3 * groups, seed=seed + 2)] if bias else []
    if "auto_pad" not in place:
        place = {**place, "output_padding": [min(extra, stride - 1) for stride in place["strides"]]}
    agrees(one_node("ConvTranspose", x, *constants, group=groups, **place), {"x": x})


@settings(max_examples=80, deadline=None)
@given(windows(), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 999))
def test_pools(place: dict[str, Any], largest: bool, ceil_mode: bool, counted: bool, seed: int) -> None:
    x = normal(2, 3, *(7, 6, 8)[: len(place["kernel_shape"])], seed=seed)
    if "auto_pad" not in place:
        place = {**place, "ceil_mode": int(ceil_mode)}
    if largest:
        return agrees(one_node("MaxPool", x, **place), {"x": x})
    return agrees(one_node("AveragePool", x, count_include_pad=int(counted), **place), {"x": x})


@settings(max_examples=40, deadline=None)
@given(layers())
def test_layers_before_and_after_the_fold(layer: Layer) -> None:
    model = single(layer)
    agrees(model, inputs_for(model))
    agrees(ir.to_proto(fold(model)[1]), inputs_for(model))


@pytest.mark.parametrize("make", MAKES)
def test_every_move(make: Make) -> None:
    model = network(make)
    agrees(model, inputs_for(model))
    agrees(ir.to_proto(fold(model)[1]), inputs_for(model))


@pytest.mark.parametrize("name", sorted(spellings()))
def test_every_spelling(name: str) -> None:
    agrees(spellings()[name], inputs_for(spellings()[name]))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_every_dtype(dtype: str) -> None:
    agrees(small_cnn(dtype=dtype), inputs_for(small_cnn(dtype=dtype)))


def test_constants_and_shapes_within_a_graph() -> None:
    nodes = [
        helper.make_node("Constant", [], ["third"], value_float=1 / 3),
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.array([2], np.int64))),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["rows"]),
        helper.make_node("ConstantOfShape", ["rows"], ["zeros"]),
        helper.make_node("Unsqueeze", ["zeros", "axis"], ["column"]),
        helper.make_node("Mul", ["x", "third"], ["scaled"]),
        helper.make_node("Add", ["scaled", "column"], ["y0"]),
    ]
    model = one_node("Identity", X, ints(1))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer[0].name = "axis"
    agrees(model, {"x": X})


def test_gradients_are_those_of_differences() -> None:
    model = small_cnn()
    graph = TorchGraph(model)
    x = torch.from_numpy(inputs_for(model)["input"].astype(np.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(graph({"input": x})["output"].square().sum(), x)
    step = 1e-6 * torch.from_numpy(np.random.default_rng(0).normal(size=x.shape))
    with torch.no_grad():
        plus, minus = (graph({"input": x + sign * step})["output"].square().sum() for sign in (1, -1))
    wanted = float((gradient * step).sum())
    assert abs(float(plus - minus) / 2 - wanted) < 1e-4 * abs(wanted)


def test_other_constants_leave_the_graph_as_it_was() -> None:
    model = small_cnn()
    x = inputs_for(model)
    graph = TorchGraph(model)
    before = graph.truth(x)["output"]
    other = graph.with_constants({"head.linear.bias": graph.constants["head.linear.bias"] + 1})
    assert np.max(np.abs(other.truth(x)["output"] - before - 1)) < 1e-12
    assert np.array_equal(graph.truth(x)["output"], before)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("TopK", {}), ("Resize", {"antialias": 1}), ("BatchNormalization", {"training_mode": 1})],
)
def test_names_the_operator_that_it_does_not_know(op: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(ParityError, match=op):
        TorchGraph(one_node(op, X, F(1), F(1), F(1), F(1), **attributes)).truth({"x": X})


def test_a_foreign_domain_is_refused() -> None:
    with pytest.raises(ParityError, match=r"com\.microsoft"):
        TorchGraph(one_node("Gelu", X, domain="com.microsoft"))


def test_says_which_input_is_missing() -> None:
    with pytest.raises(ParityError, match="no input 'input'"):
        TorchGraph(small_cnn()).truth({"image": X})


def test_what_torch_cannot_carry_out_is_one_sentence() -> None:
    with pytest.raises(ParityError, match=r"Conv 'node_conv_1' cannot be carried out"):
        TorchGraph(small_cnn()).truth({"input": np.zeros((1, 3, 8, 8), np.float32)})
