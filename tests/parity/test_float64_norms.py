from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from bnfold.parity.oracle import run_float64

X = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
SCALE, BIAS = np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32)
EPSILON = float(np.float32(1e-3))


def evaluated(operator: str, *parameters: np.ndarray, opset: int = 23, **attributes: float | str) -> np.ndarray:
    names = [f"p{at}" for at in range(len(parameters))]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["y"], **attributes)],
        "one operator",
        [value("x", TensorProto.FLOAT, X.shape)],
        [value("y", TensorProto.FLOAT, X.shape)],
        [numpy_helper.from_array(array, name) for array, name in zip(parameters, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model)
    return run_float64(model, {"x": X})["y"]


def wide(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64))


def apart(found: np.ndarray, wanted: torch.Tensor) -> float:
    return float(np.abs(found - wanted.numpy()).max())


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 21])
def test_batch_norm_of_any_opset_uses_its_stored_statistics(opset: int) -> None:
    """The evaluator's own updates the statistics by the batch before opset 14, and takes the batch's before 9."""
    gamma, beta, mean = SCALE[:, 0], BIAS[:, 0], SCALE[:, 1]
    variance = np.abs(BIAS[:, 1]) + np.float32(0.1)
    found = evaluated("BatchNormalization", gamma, beta, mean, variance, opset=opset, epsilon=EPSILON)
    wanted = F.batch_norm(wide(X), *(wide(array) for array in (mean, variance, gamma, beta)), eps=EPSILON)
    assert apart(found, wanted) < 1e-14
    assert np.abs(wanted.numpy() - X).max() > 0.1


@pytest.mark.parametrize("opset", [7, 10, 12, 13])
def test_dropout_of_any_opset_does_nothing(opset: int) -> None:
    assert apart(evaluated("Dropout", opset=opset), wide(X)) == 0.0


@pytest.mark.parametrize("axis", [-1, 2, 1, -2])
def test_layer_norm_is_that_of_torch_in_float64(axis: int) -> None:
    shape = X.shape[axis:]
    scale, bias = (array if len(shape) > 1 else array[0] for array in (SCALE, BIAS))
    found = evaluated("LayerNormalization", scale, bias, axis=axis, epsilon=EPSILON)
    assert apart(found, F.layer_norm(wide(X), shape, wide(scale), wide(bias), EPSILON)) < 1e-14
    without = evaluated("LayerNormalization", scale, axis=axis, epsilon=EPSILON)
    assert apart(without, F.layer_norm(wide(X), shape, wide(scale), None, EPSILON)) < 1e-14


@pytest.mark.parametrize("axis", [-1, 1])
def test_rms_norm_is_that_of_torch_in_float64(axis: int) -> None:
    shape = X.shape[axis:]
    scale = SCALE if len(shape) > 1 else SCALE[0]
    found = evaluated("RMSNormalization", scale, axis=axis, epsilon=EPSILON)
    assert apart(found, F.rms_norm(wide(X), shape, wide(scale), EPSILON)) < 1e-14


def test_activations_with_literals_in_their_bodies_are_those_of_torch_in_float64() -> None:
    assert apart(evaluated("Gelu"), F.gelu(wide(X))) < 1e-15
    assert apart(evaluated("Gelu", approximate="tanh"), F.gelu(wide(X), approximate="tanh")) < 1e-15
    assert apart(evaluated("HardSwish"), F.hardswish(wide(X))) < 1e-15
