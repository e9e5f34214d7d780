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
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from random_networks import inputs, network

import bnfold
from bnfold.parity.local.checking import check_local
from bnfold.parity.oracle import run_float64
from bnfold.parity.rerounding import answers_of_copies
from bnfold.parity.triangle import asked_again, compare
from bnfold.parity.weights.certificate import certify, expect
from bnfold.runtime import open_session, run

RESULTS = Path(__file__).resolve().parent / "results" / "parity_campaign.json"
LOCAL_ROWS, ROWS = 2, 16
CHUNK = 25  # networks after which the figures are written down
SHOWN = 20  # alarms of them that are


@dataclass
class Tally:
    """What was seen so far. alarms: by tier; ratios: T2's largest of each network; corners: T3's of each network."""

    seeds: list[int] = field(default_factory=list)
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
    tally.seeds.append(seed)


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
    found = compare([truth], [before], [after])
    corners = asked_again(found, lambda: answers_of_copies(folded, [x]))
    if corners != found:
        tally.doubts["T3 asked again"] += 1
    for corner in corners:
        if corner.doubt:
            tally.doubts["T3"] += 1
            tally.sentences.append(f"seed {seed}, T3 cannot tell: {corner.sentence()}")
        elif not corner.holds:
            tally.alarm("T3", seed, corner.sentence())
        tally.corners.append(corner.ratio)


def _count(tally: Tally, layers: int, report: Any, certificate: Any, local: Any) -> None:
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


def figures(tally: Tally) -> dict[str, Any]:
    """What is written down of a run."""
    found = {field.name: getattr(tally, field.name) for field in dataclasses.fields(tally)}
    found["ratios"] = {kind: _short(ratios) for kind, ratios in tally.ratios.items()}
    found["corners"] = _short(tally.corners)
    found["sentences"] = tally.sentences[:SHOWN]
    found["seconds"] = {step: round(value, 1) for step, value in tally.seconds.items()}
    return found


def _short(values: list[float]) -> list[float]:
    """Rounded up to four digits, so that a thousand fit on a page."""
    return [math.ceil(value * 10_000) / 10_000 if math.isfinite(value) else value for value in values]


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The figures of two runs on different networks as those of one."""
    if set(one["seeds"]) & set(other["seeds"]):
        raise SystemExit("these networks have been run before; choose another --seed, or remove the results")
    found = {}
    for key, value in one.items():
        if key == "worst_ulp":
            found[key] = max(value, other[key])
        elif key == "ratios":
            found[key] = {kind: value[kind] + other[key][kind] for kind in value}
        elif isinstance(value, dict):
            found[key] = dict(Counter(value) + Counter(other[key]))
        else:
            found[key] = value + other[key]
    return found


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


def page(runs: Mapping[str, Any]) -> str:
    """The runs as a Markdown table."""
    lines = [
        "| dtype | networks | layers | alarms T1, T2, T3 | T1: values, worst ulp | T2: sites, regions | "
        "T2: largest observed / bound (sites, regions) | T3: ratio median, 99%, largest | time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in sorted(runs.items(), reverse=True):
        alarms = ", ".join(str(one["alarms"].get(tier, 0)) for tier in ("T1", "T2", "T3"))
        largest = ", ".join(f"{max(found, default=0.0):.3g}" for found in one["ratios"].values())
        corners = ", ".join(f"{np.quantile(one['corners'], at):.2f}" for at in (0.5, 0.99, 1.0))
        lines.append(
            f"| {name} | {len(one['seeds']):,} | {min(one['layers'])} to {max(one['layers'])} | {alarms} "
            f"| {one['values']:,}, {one['worst_ulp']:.4f} | {one['sites']:,}, {one['regions']:,} | {largest} "
            f"| {corners} | {sum(one['seconds'].values()) / 60:.0f} min |"
        )
    return "\n".join(lines)


def record(tally: Tally, name: str, path: Path) -> dict[str, Any]:
    """Add a run to a file of results; gives all runs of the file."""
    stored = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    return _write(stored["runs"], {name: figures(tally)}, path)


def _write(runs: dict[str, Any], more: Mapping[str, Any], path: Path) -> dict[str, Any]:
    for name, one in more.items():
        runs[name] = joined(runs[name], one) if name in runs else one
    document = {"command": "python benchmarks/parity_campaign.py", "machine": _machine(), "runs": runs}
    path.write_text(json.dumps(document) + "\n")
    return runs


def look_again(path: Path) -> None:
    """Examine the networks of a file of results that T3 called wrong once more; their alarms are those of now."""
    runs = json.loads(path.read_text())["runs"]
    for name, one in runs.items():
        alarms = [sentence for sentence in one["sentences"] if ", T3: " in sentence]
        for seed in sorted({int(sentence.split()[1].rstrip(",")) for sentence in alarms}):
            tally = Tally()
            examine(seed, one.get("depth", 24), name.split()[0], tally)
            print(name, "seed", seed, dict(tally.alarms), dict(tally.doubts), tally.sentences)
            one["alarms"] = dict(Counter(one["alarms"]) - Counter(T3=1) + tally.alarms)
            one["doubts"] = dict(Counter(one["doubts"]) + tally.doubts)
        one["sentences"] = [sentence for sentence in one["sentences"] if sentence not in alarms]
    _write({}, runs, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of results, to which the figures are added")
    parser.add_argument("--join", type=Path, nargs="*", default=(), help="add these files of results, and run nothing")
    parser.add_argument("--look-again", action="store_true", help="examine the networks that T3 called wrong once more")
    options = parser.parse_args()
    if options.look_again:
        look_again(options.out)
        return
    if options.join:
        runs = json.loads(options.out.read_text())["runs"] if options.out.exists() else {}
        for path in options.join:
            runs = _write(runs, json.loads(path.read_text())["runs"], options.out)
        print(page(runs))
        return
    name = options.dtype if options.depth == 24 else f"{options.dtype}, {options.depth} layers"
    for begin in range(options.seed, options.seed + options.count, CHUNK):
        tally = Tally()
        for seed in range(begin, min(begin + CHUNK, options.seed + options.count)):
            examine(seed, options.depth, options.dtype, tally)
        runs = record(tally, name, options.out)
        print("\n".join([*tally.sentences, page(runs).splitlines()[-1]]), flush=True)
    print(page(runs))


if __name__ == "__main__":
    main()
