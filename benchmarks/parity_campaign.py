"""No false alarms: random deep networks are folded, and every tier must hold.

    python benchmarks/parity_campaign.py --count 1000                     # float32
    python benchmarks/parity_campaign.py --count 250 --dtype float16

One process, one thread. Each network has --depth layers or more (random_networks.py); even seeds fold by default, odd
ones with all moves. T1 certifies every new tensor; T2 bounds every site and region on two random inputs; T3 compares
both networks with the float64 truth on 16, the folded one with ONNX Runtime's optimisations. Puts its figures into
benchmarks/results/parity_campaign.json, a run a dtype and depth, and prints them as Markdown.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from random_networks import inputs, network

import bnfold
from bnfold.parity.certificate import certify, expect
from bnfold.parity.local import check_local
from bnfold.parity.oracle import run_float64
from bnfold.parity.triangle import compare
from bnfold.runtime import open_session, run

RESULTS = Path(__file__).resolve().parent / "results" / "parity_campaign.json"
LOCAL_ROWS, ROWS = 2, 16
SHOWN = 20  # alarms that are written down


@dataclass
class Tally:
    """What was seen so far. alarms: by tier; ratios: T2's largest of each network; corners: T3's of each network."""

    networks: int = 0
    layers: list[int] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    tensors: int = 0
    values: int = 0
    worst_ulp: float = 0.0
    sites: int = 0
    regions: int = 0
    elements: int = 0
    unbounded: Counter[str] = field(default_factory=Counter)
    ratios: dict[str, list[float]] = field(default_factory=lambda: {"site": [], "region": []})
    corners: list[float] = field(default_factory=list)
    alarms: Counter[str] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    sentences: list[str] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)

    def alarm(self, tier: str, seed: int, sentence: str) -> None:
        """A tier calls a right fold wrong."""
        self.alarms[tier] += 1
        self.sentences.append(f"seed {seed}, {tier}: {sentence}")


def examine(seed: int, depth: int, dtype: str, tally: Tally) -> None:
    """Fold one network and ask every tier."""
    clock = _Clock(tally.seconds)
    model, layers = network(seed, depth, dtype)
    clock.lap("generate")
    moves = "all" if seed % 2 else "default"
    result = bnfold.fold(model, moves=moves)
    clock.lap("fold")
    reference, folded = ir.from_proto(model), ir.from_proto(result.model)
    expectation = expect(reference, result.report)
    certificate = certify(expectation, folded)
    for finding in certificate.findings():
        tally.alarm("T1", seed, finding)
    clock.lap("T1")
    batch = inputs(model, seed, LOCAL_ROWS)
    local = check_local(reference, folded, expectation, [batch])
    for one in local.results:
        if one.bad:
            tally.alarm("T2", seed, one.sentence())
        elif one.problem or one.note:
            tally.unbounded[one.problem or one.note] += 1
    for output, distance in local.apart.items():
        tally.alarm("T2", seed, f"'{output}' is {distance:.3g} away with nothing rounded")
    tally.unbounded.update(one.note for one in local.unbounded)
    clock.lap("T2")
    _triangle(seed, model, result.model, tally)
    clock.lap("T3")
    _count(tally, layers, result.report, certificate, local)


class _Clock:
    def __init__(self, seconds: Counter[str]) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._seconds[name] += now - self._last
        self._last = now


def _triangle(seed: int, model: Any, folded: Any, tally: Tally) -> None:
    x = inputs(model, seed, ROWS)
    truth = run_float64(model, x)
    before = run(open_session(model.SerializeToString(), optimise=False), x)
    after = run(open_session(folded.SerializeToString(), optimise=True), x)
    for corner in compare([truth], [before], [after]):
        if corner.doubt:
            tally.doubts["T3"] += 1
            tally.sentences.append(f"seed {seed}, T3 cannot tell: {corner.sentence()}")
        elif not corner.holds:
            tally.alarm("T3", seed, corner.sentence())
        tally.corners.append(corner.ratio)


def _count(tally: Tally, layers: int, report: Any, certificate: Any, local: Any) -> None:
    tally.networks += 1
    tally.layers.append(layers)
    tally.outcomes.update(report.counts)
    tally.tensors += len(certificate.tensors)
    tally.values += sum(one.distances.elements for one in certificate.tensors)
    tally.worst_ulp = max(tally.worst_ulp, certificate.worst_ulp)
    measured = [one for one in local.results if not one.problem and not one.note]
    tally.elements += sum(one.elements for one in measured)
    for kind in tally.ratios:
        found = [one.worst_ratio for one in measured if one.kind == kind]
        tally.ratios[kind] += [max(found)] if found else []
    tally.sites += sum(one.kind == "site" for one in measured)
    tally.regions += sum(one.kind == "region" for one in measured)


def figures(tally: Tally, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """What is written down."""
    t2 = {
        f"largest_ratio_of_{kind}s": _quantiles(found) for kind, found in tally.ratios.items() if found
    }  # fmt: skip
    return {
        "dtype": options.dtype, "depth": options.depth, "seeds": [options.seed, options.seed + tally.networks - 1],
        "networks": tally.networks, "layers": [min(tally.layers), max(tally.layers)], "layers_total": sum(tally.layers),
        "norms": dict(tally.outcomes), "alarms": {tier: tally.alarms[tier] for tier in ("T1", "T2", "T3")},
        "cannot_tell": dict(tally.doubts),
        "T1": {"tensors": tally.tensors, "values": tally.values, "worst_ulp": tally.worst_ulp},
        "T2": {"sites": tally.sites, "regions": tally.regions, "elements": tally.elements, **t2,
               "not_bounded": dict(tally.unbounded)},
        "T3": {"ratio": _quantiles(tally.corners)},
        "sentences": tally.sentences[:SHOWN],
        "seconds": round(seconds, 1), "seconds_by_step": {key: round(value, 1) for key, value in tally.seconds.items()},
        "machine": _machine(),
    }  # fmt: skip


def _quantiles(values: list[float]) -> dict[str, float]:
    marks = {"least": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "largest": 1.0}
    return {name: float(np.quantile(values, at)) for name, at in marks.items()}


def _machine() -> dict[str, Any]:
    versions = {}
    for package in ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "python": platform.python_version(), **versions,
    }  # fmt: skip


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def page(runs: list[dict[str, Any]]) -> str:
    """The runs as a Markdown table."""
    lines = [
        "| dtype | networks | layers | alarms T1, T2, T3 | T1: values, worst ulp | T2: sites, regions | "
        "T2: largest observed / bound (sites, regions) | T3: ratio median, 99%, largest | time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in runs:
        t1, t2, t3 = one["T1"], one["T2"], one["T3"]["ratio"]
        alarms = ", ".join(str(one["alarms"][tier]) for tier in ("T1", "T2", "T3"))
        ratios = ", ".join(
            f"{t2[f'largest_ratio_of_{kind}s']['largest']:.3g}" if f"largest_ratio_of_{kind}s" in t2 else "none"
            for kind in ("site", "region")
        )
        lines.append(
            f"| {one['dtype']} | {one['networks']:,} | {one['layers'][0]} to {one['layers'][1]} | {alarms} "
            f"| {t1['values']:,}, {t1['worst_ulp']:.4f} | {t2['sites']:,}, {t2['regions']:,} | {ratios} "
            f"| {t3['median']:.2f}, {t3['p99']:.2f}, {t3['largest']:.2f} | {one['seconds'] / 60:.0f} min |"
        )
    return "\n".join(lines)


def record(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Put a run in the place of an earlier one of its dtype and depth; gives all runs."""
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    runs = [one for one in runs if (one["dtype"], one["depth"]) != (found["dtype"], found["depth"])]
    runs.append(found)
    RESULTS.write_text(json.dumps({"command": "python benchmarks/parity_campaign.py", "runs": runs}, indent=1) + "\n")
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long, and say how many there were")
    parser.add_argument("--print", action="store_true", help="write no file")
    options = parser.parse_args()
    tally, started = Tally(), time.monotonic()
    for seed in range(options.seed, options.seed + options.count):
        examine(seed, options.depth, options.dtype, tally)
        spent = time.monotonic() - started
        if tally.networks % 50 == 0:
            worst = {kind: max(found, default=0.0) for kind, found in tally.ratios.items()}
            print(f"{tally.networks} networks, {spent:.0f} s, alarms {dict(tally.alarms)}, T2 {worst}", flush=True)
        if options.minutes is not None and spent > 60 * options.minutes:
            break
    found = figures(tally, options, time.monotonic() - started)
    print(json.dumps(found, indent=1) if options.print else page(record(found)))
    for sentence in tally.sentences[:SHOWN]:
        print(sentence)


if __name__ == "__main__":
    main()
