"""Steps `module` and `onnx`: bnfold through both doors, with the default moves and with all, in float32 and float64."""

from __future__ import annotations

import copy
import time
from collections import Counter
from typing import Any

import onnx

import bnfold
from bnfold import runtime
from bnfold.folding.report import FoldReport
from bnfold.parity import oracle
from zoo.files import Array, Folder, count_nodes, error
from zoo.networks import Network

MOVES = ("default", "all")


def fold_module(network: Network, folder: Folder) -> dict[str, Any]:
    """The door of torch.nn.Module. float64: the module in double precision, folded so, against itself unfolded."""
    from zoo.prepare import build, run

    module, x = build(network)
    truth = folder.load("truth")
    wide = copy.deepcopy(module).double()
    found: dict[str, Any] = {}
    for moves in MOVES:
        start = time.perf_counter()
        result = bnfold.fold(module, (x,), moves=moves)
        seconds = time.perf_counter() - start
        exact = bnfold.fold(wide, (x.double(),), moves=moves)
        found[moves] = {
            **outcomes(result.report),
            "seconds": seconds,
            "float32_error": error(run(result.model, x), truth),
            "float64_counts": dict(exact.report.counts),
            "float64_difference": error(run(exact.model, x.double()), truth)["max"],
        }
    return found


def fold_onnx(folder: Folder) -> dict[str, Any]:
    """The door of ONNX, from the unfolded export. seconds: from bytes to bytes. Writes ours_default, ours_all."""
    data = folder.model("unfolded").read_bytes()
    x = folder.load("x")
    unfolded = onnx.load_from_string(data)
    feeds = {unfolded.graph.input[0].name: x}
    wide = _widen(unfolded)
    # The file has some constants in float32 that the module has in float64: the truth of a fold is that of its source.
    truth = _only(oracle.run_float64(wide, feeds))
    found: dict[str, Any] = {
        "nodes": count_nodes(unfolded),
        "float32_error": error(run_plain(data, x), truth),
        "apart_from_module": error(truth, folder.load("truth"))["max"],
    }
    for moves in MOVES:
        start = time.perf_counter()
        result = bnfold.fold(onnx.load_from_string(data), moves=moves)
        folded = result.model.SerializeToString()
        seconds = time.perf_counter() - start
        folder.model(f"ours_{moves}").write_bytes(folded)
        exact = bnfold.fold(wide, moves=moves)
        found[moves] = {
            **outcomes(result.report),
            "seconds": seconds,
            "nodes": count_nodes(result.model),
            "bytes": len(folded),
            "float32_error": error(run_plain(folded, x), truth),
            "float64_counts": dict(exact.report.counts),
            "float64_difference": error(_only(oracle.run_float64(exact.model, feeds)), truth)["max"],
        }
    return found


def _widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float64, but for the scales of Resize, which are float32 by definition."""
    wide = oracle.widen(model)
    scales = {node.input[2] for node in wide.graph.node if node.op_type == "Resize" and len(node.input) > 2}
    for narrow, tensor in zip(model.graph.initializer, wide.graph.initializer, strict=True):
        if tensor.name in scales:
            tensor.CopyFrom(narrow)
    return wide


def outcomes(report: FoldReport) -> dict[str, Any]:
    """Norms by outcome, what became of each by name, and the reasons of those that are not folded."""
    rest = [row for row in report.norms if row.outcome != "folded"]
    return {
        **report.counts,
        "reasons": dict(Counter(f"{row.outcome}: {row.reason}" for row in rest).most_common()),
        "details": {row.name: row.detail for row in rest},
    }


def run_plain(model: bytes, x: Array) -> Array:
    """The one output of a model in ONNX Runtime without any optimisation."""
    session = runtime.open_session(model, optimise=False)
    return _only(runtime.run(session, {session.get_inputs()[0].name: x}))


def _only(outputs: dict[str, Array]) -> Array:
    (y,) = outputs.values()
    return y
