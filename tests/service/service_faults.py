"""Bundles that somebody has broken."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def copy_version(version: Path, target: Path) -> Path:
    """Another version with the same contents."""
    shutil.copytree(version, target)
    return target


def break_channel(version: Path, *, mend_hash: bool = True) -> str:
    """Change one channel of the first weight of model.onnx; gives the tensor's name."""
    path = version / "model.onnx"
    model = onnx.load(path)
    tensor = next(weight for weight in model.graph.initializer if len(weight.dims) > 1)
    values = numpy_helper.to_array(tensor).copy()
    values[1] *= np.float32(1.01)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    if mend_hash:
        mend(version, "model.onnx")
    return str(tensor.name)


def mend(version: Path, file: str) -> None:
    """Write the hash of a changed file into the manifest."""
    path = version / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][file] = hashlib.sha256((version / file).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))
