"""What the steps of the benchmark hand to one another: a folder a network, arrays, models, one JSON a step."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True)
class Folder:
    """The folder of one network. x: (N, C, H, W) float32; truth: the float64 output of the unfolded network on x."""

    path: Path

    def model(self, name: str) -> Path:
        """The .onnx file that is called so."""
        return self.path / f"{name}.onnx"

    def save(self, name: str, array: Array) -> None:
        """Write an array."""
        np.save(self.path / f"{name}.npy", array)

    def load(self, name: str) -> Array:
        """Read an array."""
        loaded: Array = np.load(self.path / f"{name}.npy")
        return loaded

    def write(self, step: str, found: dict[str, Any]) -> None:
        """Write what a step found; the file appears whole or not at all."""
        write_json(self.path / f"{step}.json", found)

    def read(self, step: str) -> dict[str, Any] | None:
        """What a step found, or None if it has not been done."""
        path = self.path / f"{step}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def forget(self, step: str) -> None:
        """Have a step done again."""
        (self.path / f"{step}.json").unlink(missing_ok=True)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(temporary, path)


def error(y: Array, truth: Array) -> dict[str, float]:
    """How far y is from the truth: the worst element and the root of the mean square, relative to the same of truth.

    NaN and infinity come out as infinity.
    """
    if y.shape != truth.shape or not bool(np.isfinite(y).all()):
        return {"max": float("inf"), "rms": float("inf")}
    gap = np.abs(y.astype(np.float64) - truth)
    return {
        "max": float(gap.max() / np.abs(truth).max()),
        "rms": float(np.sqrt((gap**2).mean()) / np.sqrt((truth**2).mean())),
    }


def count_nodes(model: onnx.ModelProto) -> dict[str, int]:
    """Nodes by operator; "affine" counts Add, Sub, Mul and Div by a stored vector, which a norm may have become."""
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    counts = Counter(node.op_type for node in model.graph.node)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            stored[node.output[0]] = numpy_helper.to_array(node.attribute[0].t).shape
        if node.op_type in _ELEMENTWISE:
            sizes = [int(np.prod(stored[name])) for name in node.input if name in stored]
            counts["affine"] += any(size > 1 for size in sizes)
    return dict(sorted(counts.items()))


def is_right(found: dict[str, Any], unfolded: dict[str, float]) -> bool:
    """Whether a float32 fold computes the network: its error is of the size of rounding, not of a wrong map.

    Fifty times the error of the unfolded network in float32, or 1e-4, leaves room for a tool that folds in float32.
    """
    return "error" in found and found["error"]["max"] <= max(50 * unfolded["max"], 1e-4)
