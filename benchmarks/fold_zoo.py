"""Fold a zoo of well-known networks, by bnfold through both doors and by its peers: python benchmarks/fold_zoo.py

    python -m venv .venv-zoo
    .venv-zoo/bin/pip install -c constraints.txt -e '.[torch]'
    .venv-zoo/bin/pip install -c constraints.txt -r benchmarks/requirements-zoo.txt
    .venv-zoo/bin/pip install --no-deps timm==1.0.31 torchvision==0.28.0
    .venv-zoo/bin/python benchmarks/fold_zoo.py                  # all networks, all steps that are not done yet
    .venv-zoo/bin/python benchmarks/fold_zoo.py --latency-only   # on a quiet machine; then --again latency to repeat
    .venv-zoo/bin/python benchmarks/fold_zoo.py --again module --again onnx resnet18 levit_128s

The networks come from timm and torchvision, or from zoo/definitions.py; their weights and statistics are random
(zoo/statistics.py). Each step of each network runs in a process of its own and leaves a JSON in build/zoo, so that a
crash is a result and a run can be taken up again. Writes benchmarks/results/fold_zoo.json and fold_zoo_latency.json,
and docs/zoo.md from these two.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.doors import MOVES
from zoo.files import Folder, write_json
from zoo.networks import NETWORKS, Network
from zoo.peers import PEERS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/fold_zoo.json"
LATENCY = ROOT / "benchmarks/results/fold_zoo_latency.json"
PAGE = ROOT / "docs/zoo.md"
STEPS = ("prepare", "module", "onnx", "peers", "latency")  # the last one only when asked for
PACKAGES = (
    "bnfold", "torch", "timm", "torchvision", "numpy", "onnx", "onnxscript", "onnxslim", "onnxsim", "onnxoptimizer",
    "onnxruntime", "onnxruntime-gpu",
)  # fmt: skip
_LIMIT_S = 1200  # a step that takes longer has failed


def main() -> int:
    """Run what is asked for."""
    options = _options()
    if options.step:
        return _run_step(options.step, NETWORKS[options.networks[0]], _folder(options.work, options.networks[0]))
    networks = [NETWORKS[name] for name in options.networks or NETWORKS]
    if options.page_only:
        _write_page()
        return 0
    steps = ("latency",) if options.latency_only else options.steps or STEPS[:-1]
    for network in networks:
        _fold(network, _folder(options.work, network.name), steps, options)
    if not options.latency_only:
        write_json(RESULTS, _collect(options.work))
    if "latency" in steps:
        write_json(LATENCY, _collect_latency(options.work))
    _write_page()
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of: {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--work", type=Path, default=ROOT / "build/zoo", help="where models and steps are kept")
    parser.add_argument("--again", action="append", default=[], choices=STEPS, help="do this step again")
    parser.add_argument("--steps", action="append", default=[], choices=STEPS, help="do only this step")
    parser.add_argument("--latency-only", action="store_true", help="measure only latency, of what was folded before")
    parser.add_argument("--page-only", action="store_true", help="write docs/zoo.md from the results")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.networks:
        if name not in NETWORKS:
            parser.error(f"network '{name}' is not in the zoo; choose out of {', '.join(NETWORKS)}")
    return options


def _folder(work: Path, name: str) -> Folder:
    path = work / name
    path.mkdir(parents=True, exist_ok=True)
    return Folder(path)


def _files_of(step: str) -> Iterator[str]:
    """The names of a step's parts: one a peer."""
    yield from [f"peer-{peer}" for peer in PEERS] if step == "peers" else [step]


def _fold(network: Network, folder: Folder, steps: Sequence[str], options: argparse.Namespace) -> None:
    """Every step of a network that has not been done, each in its own process."""
    if not network.is_installed:
        print(f"{network.name}: {network.source} is not installed, left out", file=sys.stderr)
        return
    for step in steps:
        for part in _files_of(step):
            if step in options.again:
                folder.forget(part)
            if folder.read(part) is not None:
                continue
            start = time.perf_counter()
            command = [sys.executable, __file__, "--work", str(options.work), "--step", part, network.name]
            try:
                ran = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, env=_environment())
                said = (ran.stderr.strip().splitlines() or [""])[-1]
                failed = f"exit status {ran.returncode}: {said}"[:400] if ran.returncode else ""
            except subprocess.TimeoutExpired:
                failed = f"took longer than {_LIMIT_S} s"
            if failed:
                folder.write(part, {"failed": failed})
            told = failed or _told(folder.read(part) or {})
            print(f"{network.name:24s} {part:20s} {time.perf_counter() - start:6.1f} s  {told}", file=sys.stderr)


def _told(found: dict[str, Any]) -> str:
    """What a step found, for a person who watches."""
    if "threads" in found:
        ratios = (f"{n}: {one['ratio'][one['best_peer']]['median']:.3f}" for n, one in found["threads"].items())
        return "threads and ratio to the best peer: " + ", ".join(ratios)
    if "default" in found:
        return ", ".join(f"{moves}: {found[moves]['kept']} kept, {found[moves]['reduced']} reduced" for moves in MOVES)
    return f"{found['left']} left" if "left" in found else str(found.get("failed", ""))


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _run_step(step: str, network: Network, folder: Folder) -> int:
    """One step, in this process."""
    from zoo import doors, latency, peers, prepare

    if step == "prepare":
        found = prepare.prepare(network, folder)
    elif step == "module":
        found = doors.fold_module(network, folder)
    elif step == "onnx":
        found = doors.fold_onnx(folder)
    elif step == "latency":
        found = latency.measure(folder)
    else:
        found = peers.fold_by_peer(step.removeprefix("peer-"), folder)
    folder.write(step, found)
    return 0


def _collect(work: Path) -> dict[str, Any]:
    """All that the steps have found."""
    networks: dict[str, Any] = {}
    for name in NETWORKS:
        folder = Folder(work / name)
        prepared = folder.read("prepare")
        if prepared is None:
            continue
        found: dict[str, Any] = {"prepare": prepared, "module": folder.read("module"), "onnx": folder.read("onnx")}
        for door, moves in itertools.product(("module", "onnx"), MOVES):
            ((found[door] or {}).get(moves) or {}).pop("details", None)  # a sentence a norm; the step's own file has it
        found["peers"] = {part.removeprefix("peer-"): folder.read(part) for part in _files_of("peers")}
        networks[name] = found
    return {"command": "python benchmarks/fold_zoo.py", **_surroundings(), "networks": networks}


def _surroundings() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": None}, "versions": versions}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _collect_latency(work: Path) -> dict[str, Any]:
    found = {name: Folder(work / name).read("latency") for name in NETWORKS}
    networks = {name: one for name, one in found.items() if one is not None and "failed" not in one}
    return {"command": "python benchmarks/fold_zoo.py --latency-only", **_surroundings(), "networks": networks}


def _write_page() -> None:
    import json

    from zoo.page import render

    latency = json.loads(LATENCY.read_text()) if LATENCY.exists() else None
    PAGE.write_text(render(json.loads(RESULTS.read_text()), latency))
    print(PAGE)


if __name__ == "__main__":
    sys.exit(main())
