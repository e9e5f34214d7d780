"""Small real networks with batch norm, and the bundles that bnfold makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold import build_bundle
from bnfold.bundle import Bundle
from bnfold.preprocessing import Preprocessing

LABELS = tuple(f"digit {number}" for number in range(10))
PICTURES = Preprocessing("L", 8, 8, 1 / 255, (0.0,), (1.0,))
_OPSET, _IR = 20, 10


def _weights(**arrays: np.ndarray) -> list[TensorProto]:
    return [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()]


def _norm(generator: np.random.Generator, channels: int, prefix: str) -> list[TensorProto]:
    return _weights(
        **{
            f"{prefix}.gamma": generator.uniform(0.5, 1.5, channels),
            f"{prefix}.beta": generator.normal(0, 0.3, channels),
            f"{prefix}.mean": generator.normal(0, 0.3, channels),
            f"{prefix}.variance": generator.uniform(0.5, 1.5, channels),
        }
    )


def digits_network(seed: int = 0) -> onnx.ModelProto:
    """(N, 1, 8, 8) -> Conv 6x3x3, BatchNormalization, Relu, mean, Gemm -> logits (N, 10)."""
    generator = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["conv", "bn.gamma", "bn.beta", "bn.mean", "bn.variance"], ["norm"], name="bn"
        ),
        helper.make_node("Relu", ["norm"], ["relu"], name="relu"),
        helper.make_node("Flatten", ["relu"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "fw", "fb"], ["logits"], name="head"),
    ]
    weights = [
        *_weights(
            w=generator.normal(0, 0.4, (6, 1, 3, 3)),
            b=generator.normal(0, 0.1, 6),
            fw=generator.normal(0, 0.2, (6 * 64, 10)),
            fb=generator.normal(0, 0.1, 10),
        ),
        *_norm(generator, 6, "bn"),
    ]
    return _model(nodes, [("input", ["N", 1, 8, 8])], [("logits", ["N", 10])], weights)


def two_input_network(seed: int = 1) -> onnx.ModelProto:
    """left (N, 4), right (N, 4) -> MatMul, BatchNormalization on their sum -> total (N, 3), and left doubled."""
    generator = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Add", ["left", "right"], ["sum"], name="add"),
        helper.make_node("Gemm", ["sum", "w", "b"], ["linear"], name="linear"),
        helper.make_node(
            "BatchNormalization", ["linear", "bn.gamma", "bn.beta", "bn.mean", "bn.variance"], ["total"], name="bn"
        ),
        helper.make_node("Add", ["left", "left"], ["doubled"], name="double"),
    ]
    weights = [*_weights(w=generator.normal(0, 1, (4, 3)), b=generator.normal(0, 1, 3)), *_norm(generator, 3, "bn")]
    inputs = [("left", ["N", 4]), ("right", ["N", 4])]
    return _model(nodes, inputs, [("total", ["N", 3]), ("doubled", ["N", 4])], weights)


def free_size_network(*, mixing: bool = False, seed: int = 2) -> onnx.ModelProto:
    """(N, 1, H, W) -> Conv, BatchNormalization -> (N, 2, H, W); mixing: minus the mean over the batch."""
    generator = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["conv"], name="conv"),
        helper.make_node(
            "BatchNormalization", ["conv", "bn.gamma", "bn.beta", "bn.mean", "bn.variance"], ["norm"], name="bn"
        ),
    ]
    weights = [*_weights(w=generator.normal(0, 1, (2, 1, 1, 1)), b=[0.1, 0.2]), *_norm(generator, 2, "bn")]
    if mixing:
        nodes.append(helper.make_node("ReduceMean", ["norm", "axes"], ["mean"], name="mean", keepdims=1))
        nodes.append(helper.make_node("Sub", ["norm", "mean"], ["output"], name="subtract"))
        weights.append(numpy_helper.from_array(np.array([0], np.int64), "axes"))
    else:
        nodes.append(helper.make_node("Identity", ["norm"], ["output"], name="identity"))
    return _model(nodes, [("input", ["N", 1, "H", "W"])], [("output", ["N", 2, "H", "W"])], weights)


def dense_network(batch: int | str, classes: int, last: str = "Identity", seed: int = 3) -> onnx.ModelProto:
    """(batch, 4) -> Gemm, BatchNormalization, last -> (batch, C), the number of classes left open."""
    generator = np.random.default_rng(seed)
    norm = [f"n.{part}" for part in ("gamma", "beta", "mean", "variance")]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["linear"], name="linear"),
        helper.make_node("BatchNormalization", ["linear", *norm], ["normed"], name="n"),
        helper.make_node(last, ["normed"], ["y"], name="last"),
    ]
    weights = [
        *_weights(w=generator.normal(0, 1, (4, classes)), b=generator.normal(0, 1, classes)),
        *_norm(generator, classes, "n"),
    ]
    return _model(nodes, [("x", [batch, 4])], [("y", [batch, "C"])], weights)


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, list[str | int]]],
    outputs: Sequence[tuple[str, list[str | int]]],
    weights: Sequence[TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write the model where build_bundle can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def build_digits(repository: Path, sources: Path, name: str = "digits", seed: int = 0) -> Bundle:
    """The next version of a classifier of pictures."""
    source = save(digits_network(seed), sources / f"{name}-{seed}.onnx")
    return build_bundle(source, repository / name, labels=list(LABELS), preprocessing=PICTURES, output_kind="logits")
