"""From rounds to medians, quartiles and percentiles, and from those to the tables of the document."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from open_loop import percentiles_ms

from serving.rounds import raw_cost

LOADS = ("busy", "half", "same")
_BEGIN, _END = "<!-- tables: written by benchmarks/serve_peers.py -->", "<!-- end of tables -->"


def summarise(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the results file says of one network."""
    rows = []
    for name in dict.fromkeys(name for turn in rounds for name in turn):
        wires = dict.fromkeys(wire for turn in rounds for wire in turn.get(name, {}))
        rows += [{"server": name, "wire": wire, **_summarise_wire(rounds, name, wire)} for wire in wires]
        if not wires:
            rows.append({"server": name, "wire": "", "failed": "did not start or did not answer right"})
    raws = [found["raw"] for turn in rounds for wires in turn.values() for found in wires.values()]
    raw = {
        "n": len(raws),
        "busy_us": {str(size): _quartiles([raw["busy"][size] for raw in raws]) for size in raws[0]["busy"]},
        "paced_us": _quartiles([raw["paced"] for raw in raws]),
    }
    return {"rounds": len(rounds), "raw": raw, "rows": rows}


def _summarise_wire(rounds: Sequence[Mapping[str, Any]], name: str, wire: str) -> dict[str, Any]:
    turns = [(turn[name][wire]["raw"], turn[name][wire]) for turn in rounds if wire in turn.get(name, {})]
    row: dict[str, Any] = {"rounds": len(turns)}
    for load in LOADS:
        runs = [found[load] for _, found in turns]
        alone = [raw["paced"] if load == "same" else raw_cost(raw, found[load]["batch"]) for raw, found in turns]
        row[load] = {
            "cpu_us": _quartiles([run["cpu_us"] for run in runs]),
            "batch": _quartiles([run["batch"] for run in runs]),
            "raw_us": _quartiles(alone),
            "ratio": _quartiles([run["cpu_us"] / cost for run, cost in zip(runs, alone, strict=True)]),
            "rate": _quartiles([run["rate"] for run in runs]),
            "n": sum(run["n"] for run in runs),
            "failed": sum(run["failed"] for run in runs),
        }
        if load != "busy":  # a closed loop has no latency worth the name
            row[load]["latency_ms"] = percentiles_ms([one for run in runs for one in run["latencies"]])
            row[load]["generator_late_ms"] = percentiles_ms([one for run in runs for one in run["late"]])
            row[load]["rounds_in_which_the_generator_fell_behind"] = sum(run["fell_behind"] for run in runs)
    row["idle_cores"] = _quartiles([found["idle_cores"] for _, found in turns])
    row["memory_mib"] = round(statistics.median(found["memory_mib"] for _, found in turns))
    return row


def _quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    found = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3
    return [round(value, 3) for value in found]


def as_json(results: Mapping[str, Any]) -> str:
    """Indented, with each list of numbers on one line."""
    text = json.dumps(results, indent=1)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


def show(name: str, found: Mapping[str, Any]) -> None:
    """One turn, for whoever watches."""
    for wire, loads in found.items():
        words, raw = [], loads["raw"]
        for load in LOADS:
            run = loads[load]
            alone = raw["paced"] if load == "same" else raw_cost(raw, run["batch"])
            words.append(
                f"{load} {run['cpu_us']:.0f} us ({run['cpu_us'] / alone:.2f}x, batch {run['batch']:.2f}, "
                f"{run['rate']:.0f}/s)"
            )
        print(f"{name:20} {wire:7} {'; '.join(words)}", file=sys.stderr)


# --------------------------------------------------------------------------------------------- the document


def write(document: Path, results: Mapping[str, Any]) -> None:
    """Put the tables between their marks."""
    text = document.read_text()
    body = "\n\n".join([_about(results), *(_tables(name, found) for name, found in results["networks"].items())])
    marks = re.compile(re.escape(_BEGIN) + ".*" + re.escape(_END), re.DOTALL)
    document.write_text(marks.sub(lambda _: f"{_BEGIN}\n\n{body}\n\n{_END}", text))


def _about(results: Mapping[str, Any]) -> str:
    machine, load = results["machine"], results["load"]
    versions = machine["versions"]
    peers = [f"{name} {found[name]}" for name, found in versions.items() if name != "bnfold" and name in found]
    runtime = versions["bnfold"].get("onnxruntime-gpu") or versions["bnfold"].get("onnxruntime")
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']} {machine['kernel']}, "
        f"Python {machine['python']}, ONNX Runtime {runtime} on the CPU, {machine['date']}. "
        f"Peers: {', '.join(peers) or 'none'}. {load['seconds']:g} s of each load in each round."
    )


def _tables(network: str, found: Mapping[str, Any]) -> str:
    raw = found["raw"]
    rows = [row for row in found["rows"] if "failed" not in row]
    alone = ", ".join(f"{raw['busy_us'][size][1]:.0f} at {size}" for size in ("1", "4", "16", "64"))
    lines = [
        f"### {network}",
        "",
        f"The runtime alone, µs of CPU a row, by batch size: {alone}; one row at a time and paced like the last load: "
        f"{raw['paced_us'][1]:.0f}. Medians of {found['rounds']} rounds, quartiles in brackets. "
        f"Commit {found['commit']}; load average, this and other work together: {found['load_average']:.1f}.",
        "",
        "| server | wire | CPU µs a request, saturated | batch | **times the runtime** | answers a second "
        "| half load: CPU µs | times | same load: CPU µs | times |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["wire"] == "JSON", row["busy"]["cpu_us"][1])):
        busy, half, same = (row[load] for load in LOADS)
        lines.append(
            f"| {row['server']} | {row['wire']} | {_span(busy['cpu_us'], 0)} | {busy['batch'][1]:.1f} "
            f"| **{busy['ratio'][1]:.2f}** [{busy['ratio'][0]:.2f}, {busy['ratio'][2]:.2f}] | {busy['rate'][1]:.0f} "
            f"| {half['cpu_us'][1]:.0f} | {half['ratio'][1]:.2f} | {same['cpu_us'][1]:.0f} | {same['ratio'][1]:.2f} |"
        )
    lines += ["", "Latency in ms, open loop, Poisson, all rounds together:", ""]
    lines += [
        "| server | wire | load | requests/s | n | p50 | p90 | p99 | p99.9 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["wire"] == "JSON", row["busy"]["cpu_us"][1])):
        for load, label in (("half", "half"), ("same", "same")):
            run = row[load]
            times = " | ".join(f"{value:.2f}" if value is not None else "–" for value in run["latency_ms"].values())
            lines.append(f"| {row['server']} | {row['wire']} | {label} | {run['rate'][1]:.0f} | {run['n']} | {times} |")
    missing = [row["server"] for row in found["rows"] if "failed" in row]
    return "\n".join(
        [*lines, *(["", f"Did not start or did not answer right: {', '.join(missing)}."] if missing else [])]
    )


def _span(quartiles: Sequence[float], digits: int) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in quartiles)
    return f"{middle} [{low}, {high}]"
