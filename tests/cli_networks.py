"""Small ONNX networks for the tests of the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

CLASSES = 3


def save_network(path: Path, *, variance: float = 0.5, training: bool = False) -> Path:
    """Conv -> BatchNormalization -> Relu -> GlobalAveragePool -> MatMul: (N, 1, 8, 8) to (N, 3) logits."""
    numbers = np.random.default_rng(3)
    tensors = {
        "weight": numbers.standard_normal((4, 1, 3, 3)),
        "gamma": numbers.uniform(0.5, 2, 4),
        "beta": numbers.standard_normal(4),
        "mean": numbers.standard_normal(4),
        "variance": np.array([0.7, variance, 1.3, 0.2]),
        "head": numbers.standard_normal((4, CLASSES)),
    }
    norm_outputs = ["normed", "running_mean", "running_var"] if training else ["normed"]
    norm_inputs = ["convolved", "gamma", "beta", "mean", "variance"]
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["convolved"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", norm_inputs, norm_outputs, "norm", training_mode=int(training)),
        helper.make_node("Relu", ["normed"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes, to tell that nothing was written."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mend(folder: Path, **changes: Any) -> None:
    """Write a manifest whose hashes are those of the files as they are, with other fields changed."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in document["files"]}
    path.write_text(json.dumps({**document, **changes}))
