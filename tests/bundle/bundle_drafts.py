"""A small network with batch norm, its exact fold, and a draft of a bundle of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.bundle import Bundle, BundleDraft, Golden, Preprocessing, hash_tensor, tensor_specs

EPS = 1e-3


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "fc.weight": random.normal(size=(4, 3)).astype(np.float32),
        "fc.bias": random.normal(size=3).astype(np.float32),
        "bn.weight": random.normal(size=3).astype(np.float32),
        "bn.bias": random.normal(size=3).astype(np.float32),
        "bn.running_mean": random.normal(size=3).astype(np.float32),
        "bn.running_var": random.uniform(0.1, 2.0, size=3).astype(np.float32),
    }


def fold(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    wide = {name: array.astype(np.float64) for name, array in source.items()}
    scale = wide["bn.weight"] / np.sqrt(wide["bn.running_var"] + EPS)
    shift = wide["bn.bias"] - scale * wide["bn.running_mean"]
    return {
        "fc.weight": (wide["fc.weight"] * scale).astype(np.float32),
        "fc.bias": (wide["fc.bias"] * scale + shift).astype(np.float32),
    }


def make_model(weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """(N, 1, 2, 2) -> Flatten -> Gemm -> BatchNormalization, where the weights have one -> (N, 3)."""
    nodes = [helper.make_node("Flatten", ["input"], ["flat"])]
    last = "hidden" if "bn.weight" in weights else "logits"
    nodes.append(helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], [last]))
    if "bn.weight" in weights:
        norm = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
        nodes.append(helper.make_node("BatchNormalization", ["hidden", *norm], ["logits"], epsilon=EPS))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def make_golden(weights: Mapping[str, np.ndarray], seed: int = 1, rows: int = 4) -> Golden:
    batch = np.random.default_rng(seed).normal(size=(rows, 1, 2, 2)).astype(np.float32)
    truth = batch.reshape(rows, 4).astype(np.float64) @ weights["fc.weight"] + weights["fc.bias"]
    labels = truth.argmax(axis=1).astype(np.int64)
    return Golden("any", {"input": batch}, {"logits": truth.astype(np.float32)}, {"logits": truth}, labels)


def make_draft(**changes: Any) -> BundleDraft:
    source = tensors()
    folded = fold(source)
    reference = make_model(source)
    inputs, outputs = tensor_specs(reference, "reference")
    fields: dict[str, Any] = {
        "source": {"kind": "onnx", "file": "tiny.onnx"},
        "inputs": inputs,
        "outputs": outputs,
        "output_kind": "logits",
        "labels": ("zero", "one", "two"),
        "preprocessing": Preprocessing("L", 2, 2, 1 / 255, (0.5,), (0.25,)),
        "fold_map": ({"tensor": "fc.weight", "norms": ["bn"]},),
        "source_tensors": {name: hash_tensor(array) for name, array in source.items()},
        "tool_versions": {"bnfold": "0.1.0"},
        "model": make_model(folded),
        "reference": reference,
        "statistics": {
            "bn": {
                "gamma": source["bn.weight"],
                "beta": source["bn.bias"],
                "mean": source["bn.running_mean"],
                "variance": source["bn.running_var"],
                "eps": EPS,
            }
        },
        "fold_report": {"counts": {"folded": 1}, "norms": []},
        "goldens": [make_golden(folded, seed=1), make_golden(folded, seed=2, rows=1)],
    }
    return BundleDraft(**{**fields, **changes})


def prove(_: Bundle) -> dict[str, Any]:
    return {"holds": True}


def mend(folder: Path, **changes: Any) -> None:
    """Write a manifest whose hashes and listing are those of the folder as it is, with other fields changed."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["files"] = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != path
    }
    path.write_text(json.dumps({**document, **changes}))
