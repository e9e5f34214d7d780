"""Step `peer`: other tools that fold batch norm, on the same unfolded file. Each runs in a process of its own."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from bnfold.errors import BnfoldError
from zoo.doors import run_plain
from zoo.files import Folder, count_nodes, error


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(model)


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    simplified, _ = onnxsim.simplify(model)
    return simplified


def _onnxoptimizer(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxoptimizer

    return onnxoptimizer.optimize(model, onnxoptimizer.get_fuse_and_elimination_passes())


def _onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxscript import optimizer, rewriter

    return rewriter.rewrite(optimizer.optimize(model))


def _onnxruntime(model: onnx.ModelProto) -> onnx.ModelProto:
    """Its basic optimisations, saved as a model; the others write operators that only it knows."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(  # noqa: TID251 - the peer itself, not a run
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        return onnx.load(path)


PEERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnxscript": _onnxscript,
    "onnxslim": _onnxslim,
    "onnxsim": _onnxsim,
    "onnxoptimizer": _onnxoptimizer,
    "onnxruntime": _onnxruntime,
}


def fold_by_peer(name: str, folder: Folder) -> dict[str, Any]:
    """What a peer makes of unfolded.onnx; seconds from bytes to bytes. Writes <peer>.onnx."""
    fold = PEERS[name]
    data = folder.model("unfolded").read_bytes()
    fold(tiny())  # imports, and what is done once
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            folded = fold(onnx.load_from_string(data)).SerializeToString()
    except Exception as problem:  # whatever it raises is its result
        return {"failed": f"{type(problem).__name__}: {str(problem).strip()[:200]}"}
    seconds = time.perf_counter() - start
    folder.model(name).write_bytes(folded)
    return {"seconds": seconds, **judge(name, folder)}


def judge(name: str, folder: Folder) -> dict[str, Any]:
    """Norms left in <name>.onnx, and its error. affine_added: elementwise steps by a vector that were not there."""
    counts = count_nodes(onnx.load(folder.model(name)))
    before = count_nodes(onnx.load(folder.model("unfolded")))
    found: dict[str, Any] = {
        "left": counts.get("BatchNormalization", 0),
        "affine_added": counts.get("affine", 0) - before.get("affine", 0),
        "nodes": sum(counts.values()) - counts.get("affine", 0),
    }
    try:
        found["error"] = error(run_plain(folder.model(name).read_bytes(), folder.load("x")), folder.load("truth"))
    except BnfoldError as problem:
        found["failed"] = str(problem)[:200]
    return found


def tiny() -> onnx.ModelProto:
    """A model without norms."""
    return onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> tiny (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }'
    )
