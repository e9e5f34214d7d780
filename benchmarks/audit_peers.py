"""Real folds by other tools under `bnfold audit`: the figures of docs/audit.md, and the files of its tests.

    python benchmarks/audit_peers.py figures --networks 40    each tool that is installed on random networks
    python benchmarks/audit_peers.py zoo FOLDER               T1 on the files that fold_zoo.py left in a folder
    python benchmarks/audit_peers.py files FOLDER             small networks and what each tool makes of them

It imports no torch but for PyTorch's own tools. `figures` adds its rows to benchmarks/results/audit_peers.json, so that
it may be run in several environments, one after the other.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from audited import networks  # noqa: E402 - the path is set above
from speed.tools import TOOLS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "audit_peers.json"
ONNX_TOOLS = ("onnxslim", "onnxsim", "onnxoptimizer", "onnxscript", "onnxruntime")
TORCH_TOOLS = ("torch_fusion", "torch_fx", "torch_export")

Fold = Callable[[bytes], bytes]


def version(tool: str) -> str:
    """The version of a tool, "" where it is not installed."""
    packages = ("onnxruntime", "onnxruntime-gpu") if tool == "onnxruntime" else (tool.partition("_")[0],)
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def write_files(folder: Path) -> None:
    """Small networks, right and wrong folds of them, and made.json with versions and hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"tools": {tool: version(tool) for tool in ONNX_TOOLS}, "files": {}}
    for name, make in {**networks.RIGHT, **networks.WRONG}.items():
        model = make(networks.Builder(seed=len(name), width=8))
        data = model.SerializeToString()
        _write(folder, f"{name}.onnx", data, record)
        for tool in ONNX_TOOLS:
            if not version(tool) or (name in networks.WRONG and tool != networks.WRONG_TOOL[name]):
                continue
            _write(folder, f"{name}.{tool}.onnx", TOOLS[tool](data), record)
    (folder / "made.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _write(folder: Path, name: str, data: bytes, record: dict[str, Any]) -> None:
    (folder / name).write_bytes(data)
    record["files"][name] = hashlib.sha256(data).hexdigest()


def figures(count: int) -> None:
    """Audit each installed tool on random networks, and add what was found to the results."""
    for tool in (*ONNX_TOOLS, *TORCH_TOOLS):
        if not version(tool) or (tool in TORCH_TOOLS and importlib.util.find_spec("torch") is None):
            continue
        _add(tool, _row(tool, count))


def _add(name: str, row: dict[str, Any]) -> None:
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    known[name] = row
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(name, json.dumps(row), flush=True)


def zoo(folder: Path) -> None:
    """T1 on what tools made of the networks of benchmarks/fold_zoo.py, which it left in a folder."""
    from bnfold.folding.onnx_file import load_model
    from bnfold.parity.audit.comparing import compare_graphs

    for tool in ("default", *ONNX_TOOLS):
        row: dict[str, Any] = {
            "networks": 0, "whole": 0, "norms_taken": 0, "tensors": 0, "nearest": 0, "consistent": 0, "wrong": [],
            "weights_ulp": 0.0, "biases_ulp": 0.0, "share_of_bound": 0.0, "not_matched": [],
        }  # fmt: skip
        for path in sorted(folder.glob(f"*/{tool}.onnx")):
            found = compare_graphs(load_model(path.with_name("unfolded.onnx")), load_model(path))
            name = path.parent.name
            row["networks"] += 1
            if not found.is_whole:
                row["not_matched"].append(name)
                continue
            row["whole"] += 1
            row["norms_taken"] += len(found.taken)
            row["tensors"] += len(found.changed)
            row["nearest"] += sum(tensor.verdict == "nearest" for tensor in found.changed)
            row["consistent"] += sum(tensor.verdict == "consistent with rounding" for tensor in found.changed)
            row["wrong"] += [f"{name}: {tensor.tensor}" for tensor in found.wrong]
            for role, key in (("weight", "weights_ulp"), ("bias", "biases_ulp")):
                worst = [tensor.worst_ulp for tensor in found.changed if tensor.role == role]
                row[key] = max([row[key], *worst])
            row["share_of_bound"] = max([row["share_of_bound"], *(tensor.share for tensor in found.changed)])
        _add(f"zoo: {tool}", row)


def _row(tool: str, count: int) -> dict[str, Any]:
    import bnfold

    row: dict[str, Any] = {
        "version": version(tool), "networks": 0, "norms_taken": 0, "norms_kept": 0, "tensors": 0, "nearest": 0,
        "consistent": 0, "wrong": 0, "not_matched": 0, "t3_fails": 0, "weights_ulp": 0.0, "biases_ulp": 0.0,
        "share_of_bound": 0.0, "t3_ratio": 0.0, "seconds": 0.0, "machine": platform.machine(),
    }  # fmt: skip
    biases: list[float] = []
    for folded, original, example in _folds(tool, count):
        start = time.perf_counter()
        report = bnfold.audit(folded, original, **({} if example is None else {"example_inputs": example}))
        row["seconds"] += time.perf_counter() - start
        changed = [tensor for tensor in report.tensors if tensor.verdict != "unchanged"]
        row["networks"] += 1
        row["norms_taken"] += len(report.norms["taken"])
        row["norms_kept"] += len(report.norms["kept"])
        row["tensors"] += len(changed)
        row["nearest"] += sum(tensor.verdict == "nearest" for tensor in changed)
        row["consistent"] += sum(tensor.verdict == "consistent with rounding" for tensor in changed)
        row["wrong"] += len(report.wrong)
        row["not_matched"] += report.tier("T1").status == "cannot tell"
        row["t3_fails"] += report.tier("T3").status != "holds"
        row["weights_ulp"] = max(row["weights_ulp"], report.worst_ulp("weight"))
        row["biases_ulp"] = max(row["biases_ulp"], report.worst_ulp("bias"))
        row["share_of_bound"] = max([row["share_of_bound"], *(tensor.share for tensor in changed)])
        row["t3_ratio"] = max(row["t3_ratio"], report.tier("T3").summary["ratio"])
        biases += [tensor.worst_ulp for tensor in changed if tensor.role == "bias"]
    row["biases_ulp_median_and_90th_percentile"] = [float(np.percentile(biases, part)) for part in (50, 90)]
    return row


def _folds(tool: str, count: int) -> Iterator[tuple[Any, Any, Any]]:
    """(folded, original, example inputs) for random networks."""
    if tool in TORCH_TOOLS:
        from audited import torch_networks

        yield from torch_networks.folds(tool, count)
        return
    for seed in range(count):
        make = list(networks.RIGHT.values())[seed % len(networks.RIGHT)]
        model = make(networks.Builder(seed=seed, width=64))
        yield onnx.load_from_string(TOOLS[tool](model.SerializeToString())), model, None


def main() -> None:
    """One of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("files").add_argument("folder", type=Path)
    steps.add_parser("figures").add_argument("--networks", type=int, default=40)
    steps.add_parser("zoo").add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.step == "files":
        write_files(options.folder)
    elif options.step == "zoo":
        zoo(options.folder)
    else:
        figures(options.networks)


if __name__ == "__main__":
    main()
