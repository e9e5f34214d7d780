"""Models as other exporters write them: Keras by itself, padding by name, old IR versions, reshapes at run time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_networks import FOLDED, Builder, broken, check, close, evaluate, feeds, fold_of, ops, outcomes

from bnfold.runtime import open_session, run

SEQUENTIALS = {
    "dense, norm, relu": ["dense", "norm", "relu", "dense"],
    "dense with activation, norm, dense": ["dense relu", "norm", "dense"],
    "dense with tanh, norm, dropout, dense": ["dense tanh", "norm", "dropout", "dense softmax"],
    "dense without bias, norm, relu, dropout": ["dense plain", "norm", "relu", "dropout", "dense", "norm"],
    "norm first": ["norm", "dense", "norm", "relu", "dense"],
    "norms without gamma or beta": ["dense", "bare norm", "relu", "dense relu", "bare norm", "dense"],
}


def _sequential(kinds: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    assert keras.backend.backend() == "torch"
    made: dict[str, Any] = {
        "dense": lambda: keras.layers.Dense(7),
        "dense plain": lambda: keras.layers.Dense(7, use_bias=False),
        "norm": lambda: keras.layers.BatchNormalization(),
        "bare norm": lambda: keras.layers.BatchNormalization(scale=False, center=False),
        "relu": lambda: keras.layers.ReLU(),
        "dropout": lambda: keras.layers.Dropout(0.5),
    }
    layers = [
        made[kind]() if kind in made else keras.layers.Dense(7, activation=kind.removeprefix("dense "))
        for kind in kinds
    ]
    model = keras.Sequential([keras.Input((6,)), *layers])
    rng = np.random.default_rng(3)
    for layer in layers:
        weights = [rng.normal(size=weight.shape) for weight in layer.get_weights()]
        if weights and isinstance(layer, keras.layers.BatchNormalization):
            weights[-1] = rng.uniform(0.3, 3.0, weights[-1].shape)
        layer.set_weights(weights)
    model(np.zeros((1, 6), np.float32))
    return model


# torch traces Python numbers of Keras, and Keras's exporter uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SEQUENTIALS)
def test_a_sequential_that_keras_exports_folds_completely(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = SEQUENTIALS[name]
    _sequential(kinds, monkeypatch).export(str(tmp_path / "model.onnx"), format="onnx", verbose=False)
    low = onnx.load(tmp_path / "model.onnx")
    wide = _widened(low)
    inputs = feeds(wide)
    truth = evaluate(wide, inputs)
    folded = fold_of(wide)
    assert close(evaluate(folded.model, inputs), truth, 1e-10)
    result = fold_of(low)
    for found in (folded, result):
        assert outcomes(found) == FOLDED * sum(kind.endswith("norm") for kind in kinds)
        assert not {"BatchNormalization", "Sub", "Mul", "Div", "Sqrt"} & set(ops(found.model))
        assert ops(found.model).count("Add") <= sum(kind.startswith("dense") for kind in kinds)
    for entry in folded.fold_map:  # a ReLU may hide one channel, but not each
        seen = (not close(evaluate(model, inputs), truth, 1e-10) for model in broken(folded, entry["tensor"]))
        assert any(seen), "the check sees nothing"
    session = open_session(result.model.SerializeToString(), optimise=False)
    given = {key: array.astype(np.float32) for key, array in inputs.items()}
    assert close(list(run(session, given).values()), truth, 2e-5)


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function in float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    low, high = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    del wide.graph.value_info[:]
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == low:
            value.type.tensor_type.elem_type = high
    tensors = [*wide.graph.initializer]
    for node in wide.graph.node:
        tensors += [attribute.t for attribute in node.attribute if attribute.type == onnx.AttributeProto.TENSOR]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == low:
                attribute.i = high
    for tensor in tensors:
        if tensor.data_type == low:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return wide


@pytest.mark.parametrize("modes", [("SAME_UPPER", "SAME_LOWER"), ("SAME_UPPER", "SAME_UPPER")])
@pytest.mark.parametrize("stride", [1, 2])
def test_branches_that_are_padded_by_name_are_merged_only_where_they_read_the_same_places(modes, stride) -> None:
    def build(b: Builder) -> str:
        x = b.input(2, 3, 6, 6)
        kernel = (2, 2) if stride == 1 else (3, 3)
        parts = [b.conv(x, (3, 4), kernel, auto_pad=mode, strides=[stride] * 2) for mode in modes]
        return b.bn(b.node("Add", *parts), 4)

    check(build)


@pytest.mark.parametrize("opset", [9, 11, 13, onnx.defs.onnx_opset_version()])
@pytest.mark.parametrize("ir_version", [3, 9])
def test_a_network_with_carriers_in_each_opset(opset: int, ir_version: int) -> None:
    """Initialisers listed as inputs, Constant nodes, Identity chains, nodes without names, a Reshape by Shape."""

    def build(b: Builder) -> str:
        y = b.conv(b.input("N", 3, 8, 8), (3, 4), (3, 3), pads=[1, 1, 1, 1], name="")
        y = b.bn(b.node("Identity", b.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2], name="")), 4)
        y = b.node("AveragePool", b.node("Relu", b.node("Identity", y)), kernel_shape=[2, 2], strides=[2, 2])
        count = b.node("Gather", b.node("Shape", y), b.node("Constant", value=b.tensor(np.array([0]))), axis=0)
        y = b.node("Reshape", y, b.node("Concat", count, b.const(np.array([-1])), axis=0))
        b.shapes["out"] = ("N", 5)
        return b.bn(b.node("Gemm", y, b.const(b.values(16, 5)), b.const(b.values(5))), 5, out="out")

    result = check(build, opset=opset, ir_version=ir_version, runtime=opset < 24)
    found = outcomes(result)
    assert found[-1] == ("folded", "")
    assert all(outcome in ("folded", "kept") for outcome, _ in found)
