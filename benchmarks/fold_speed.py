"""How long a fold takes, bytes in to bytes out, beside other tools; how it grows; how much memory it needs.

    python -m venv .venv-peers
    .venv-peers/bin/pip install -c constraints.txt onnx onnxruntime onnxscript onnxslim==0.1.98 onnxsim==0.8.1 \
        onnxoptimizer==0.4.2
    python benchmarks/fold_speed.py --peers .venv-peers/bin/python        # on a quiet machine
    python benchmarks/fold_speed.py --only memory --gigabytes 1

Each run is a process of its own that folds a small model first (imports, first calls) and then the one that counts;
the tools take turns, and the median of n runs counts. Everyone starts from the bytes of the file and ends with the
bytes of the folded model. The networks are made of random weights (speed/models.py). Writes
benchmarks/results/fold_speed.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
from speed.models import BUILDERS, chain, save_dense_stack
from speed.tools import TOOLS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/fold_speed.json"
LENGTHS = (100, 1000, 10000)
LIMIT_S = 900
PACKAGES = (
    "bnfold",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "onnxslim",
    "onnxsim",
    "onnxoptimizer",
)
MiB = 1 << 20


def main() -> None:
    """Run what is asked for, print a line each, write the results."""
    options = _options()
    if options.worker:
        print(json.dumps(_measure(options.worker, options.model)))
        return
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if options.only in ("", "compare"):
            found["resnet152"] = _compare(Path(folder), options)
        if options.only in ("", "growth"):
            found["growth"] = [_grown(Path(folder), length, options) for length in LENGTHS]
        if options.only in ("", "memory"):
            found["memory"] = _memory(Path(folder), options)
    found["machine"] = _machine(options)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default="", help="the Python that has the other tools")
    parser.add_argument("--only", default="", choices=["compare", "growth", "memory"])
    parser.add_argument("-n", type=int, default=5, help="runs of each tool")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="weights of the model for the memory")
    parser.add_argument("--tools", nargs="*", default=sorted(TOOLS), choices=sorted(TOOLS))
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------------------------ in its own process


def _measure(tool: str, path: Path) -> dict[str, Any]:
    """Fold a file by a tool: wall and CPU seconds from bytes to bytes, norms left, and the process's peak memory."""
    if tool == "path":
        return _measure_path(path)
    data, fold = path.read_bytes(), TOOLS[tool]
    with contextlib.redirect_stdout(io.StringIO()):
        fold(chain(2).SerializeToString())
        wall, cpu = time.perf_counter(), time.process_time()
        folded = fold(data)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    left = sum(node.op_type == "BatchNormalization" for node in onnx.load_from_string(folded).graph.node)
    return {"seconds": wall, "cpu_seconds": cpu, "bytes": len(folded), "norms_left": left}


def _measure_path(path: Path) -> dict[str, Any]:
    """bnfold.fold of a path; the peak is that of the fold, over what the process had before."""
    import bnfold

    bnfold.fold(chain(2))
    before = _peak()
    wall = time.perf_counter()
    result = bnfold.fold(path)
    wall = time.perf_counter() - wall
    peak = _peak()
    counts = result.report.counts
    return {"seconds": wall, "peak_bytes": peak - before, "process_peak_bytes": peak, "outcomes": counts}


def _peak() -> int:
    """The most memory that this process has had, in bytes, pages of mapped files included.

    ru_maxrss begins with what the parent had when it forked; VmHWM of Linux begins with the program.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ----------------------------------------------------------------------------------------- from outside


def _run(tool: str, path: Path, python: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [python, __file__, "--worker", tool, "--model", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else str(done.returncode)}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _compare(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    path = folder / "resnet152.onnx"
    path.write_bytes(BUILDERS["resnet152"]().SerializeToString())
    tools = [tool for tool in options.tools if tool.startswith("bnfold") or options.peers]
    runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
    for _ in range(options.n):
        for tool in tools:  # they take turns
            runs[tool].append(_run(tool, path, sys.executable if tool.startswith("bnfold") else options.peers))
    return [_row(tool, found) for tool, found in runs.items()]


def _row(tool: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    done = [run for run in runs if "failed" not in run]
    row: dict[str, Any] = {"tool": tool, "n": len(done)}
    if not done:
        row["failed"] = runs[0]["failed"]
    else:
        for key in ("seconds", "cpu_seconds"):
            row[key] = round(statistics.median(run[key] for run in done), 3)
            row[f"all_{key}"] = [round(run[key], 3) for run in done]
        row |= {"norms_left": done[0]["norms_left"]}
    print(row, file=sys.stderr)
    return row


def _grown(folder: Path, length: int, options: argparse.Namespace) -> dict[str, Any]:
    path = folder / f"chain{length}.onnx"
    path.write_bytes(chain(length).SerializeToString())
    row = _row("bnfold", [_run("bnfold", path, sys.executable) for _ in range(options.n if length < 10000 else 2)])
    each = {f"milli{key}_each": round(1000 * row[key] / length, 3) for key in ("seconds", "cpu_seconds")}
    return {"norms": length, **each, **row}


def _memory(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    width = 8192  # 256 MiB a layer
    layers = max(1, round(options.gigabytes * 1024 / 256))
    for external in (False, True) if options.gigabytes < 2 else (True,):
        path = folder / f"stack{external}.onnx"
        weights = save_dense_stack(path, layers, width, external=external)
        found = _run("path", path, sys.executable)
        if "failed" not in found:
            found["peak_over_weights"] = round(found["peak_bytes"] / weights, 3)
        rows.append({"external_data": external, "weights_bytes": weights, **found})
        print(rows[-1], file=sys.stderr)
        for file in folder.glob("stack*"):
            file.unlink()
    return rows


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    versions = {}
    listing = [options.peers, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    peers = (
        json.loads(subprocess.run(listing, capture_output=True, text=True, check=True).stdout) if options.peers else []
    )
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": _processor(), "cores": os.cpu_count(), "system": platform.platform(),
        "python": platform.python_version(), "versions": versions,
        "peers": {row["name"]: row["version"] for row in peers if row["name"] in PACKAGES},
        "date": time.strftime("%Y-%m-%d"), "threads": 1,
    }  # fmt: skip


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
