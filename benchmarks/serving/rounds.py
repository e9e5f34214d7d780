"""One turn of one server: start it, check its answer, put load on it in three ways, and count its CPU time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from open_loop import Load, Outcome, schedule

from serving.processes import Tree, free_port, started
from serving.servers import Place, Server, Wire

CONNECTIONS = 16
OPEN_CONNECTIONS = 128
_CLOSE = 1e-4  # of the largest output; the same network in the same runtime differs by rounding alone
_READY_S = 30.0
_SETTLED_S = 0.3


@dataclass(frozen=True)
class Plan:
    """seconds: of each kind of load. rate: of the load that is the same for everybody. product: folder with bnfold."""

    seconds: float
    rate: float
    repository: Path
    product: Path
    environments: Path | None
    seed: int = 0

    def with_seed(self, seed: int) -> Plan:
        """Other arrivals."""
        return replace(self, seed=seed)


class Raw:
    """The runtime alone in its own process, asleep between two measurements."""

    def __init__(self, plan: Plan, network: str) -> None:
        model = plan.repository / network / "1" / "model.onnx"
        script = Path(__file__).with_name("raw_runtime.py")
        command = [sys.executable, str(script), str(model), str(plan.rate)]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, env=_environment(plan), stdin=pipe, stdout=pipe, text=True)

    def measure(self) -> dict[str, Any]:
        """{"busy": {rows: microseconds a row}, "paced": microseconds}."""
        if self._child.stdin is None or self._child.stdout is None:
            raise RuntimeError("the runtime's process has no pipes")
        print("measure", file=self._child.stdin, flush=True)
        found = json.loads(self._child.stdout.readline())
        return {"busy": {int(rows): cost for rows, cost in found["busy"].items()}, "paced": found["paced"]}

    def close(self) -> None:
        """End it."""
        self._child.communicate()


def mean_raw(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Between two measurements, before and after a server's."""
    busy = {size: (cost + other["busy"][size]) / 2 for size, cost in one["busy"].items()}
    return {"busy": busy, "paced": (one["paced"] + other["paced"]) / 2}


def raw_cost(raw: Mapping[str, Any], batch: float) -> float:
    """Microseconds a row of the runtime alone at a mean batch size, between those that were measured."""
    sizes = sorted(raw["busy"])
    return float(np.interp(batch, sizes, [raw["busy"][size] for size in sizes]))


def measure(plan: Plan, server: Server, network: str, expected: np.ndarray[Any, Any], raw: Raw) -> dict[str, Any]:
    """What each wire of a server costs: {wire: {load: numbers}}. Raises RuntimeError when it does not answer right.

    The runtime alone is measured before and after each.
    """
    found = {}
    with _running(plan, server, network) as (place, tree):
        idle = _idle(tree)
        before = raw.measure()
        for wire in server.wires:
            found[wire.name] = _measure_wire(plan, server, wire, place, tree, expected)
            after = raw.measure()
            found[wire.name]["raw"], before = mean_raw(before, after), after
            found[wire.name]["idle_cores"] = idle
            found[wire.name]["memory_mib"] = round(tree.resident_bytes() / 2**20)
    return found


@contextlib.contextmanager
def _running(plan: Plan, server: Server, network: str) -> Iterator[tuple[Place, Tree]]:
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        counts = folder / "counts"
        counts.write_bytes(bytes(16))
        place = Place(_python(plan, server), port, plan.repository, network, folder, counts)
        server.prepare(place, server.max_batch)
        variables = {**server.variables(place), **({} if server.environment else _environment(plan))}
        with started(server.command(place), variables, folder, port, folder / "log") as tree:
            yield place, tree


def _python(plan: Plan, server: Server) -> str:
    if not server.environment or plan.environments is None:
        return sys.executable
    return str(plan.environments / server.environment / "bin" / "python")


def _environment(plan: Plan) -> dict[str, str]:
    folders = [str(plan.product), str(Path(__file__).resolve().parents[1])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}


def _measure_wire(
    plan: Plan, server: Server, wire: Wire, place: Place, tree: Tree, expected: np.ndarray[Any, Any]
) -> dict[str, Any]:
    ask = wire.ask(place)
    _check(server, wire, place, expected)
    with contextlib.closing(Load(place.port, CONNECTIONS)) as load:
        load.closed_loop(ask, min(1.0, plan.seconds))  # warm-up
        busy = _counted(server, place, tree, lambda: load.closed_loop(ask, plan.seconds))
    capacity = busy["rate"]
    with contextlib.closing(Load(place.port, OPEN_CONNECTIONS)) as load:
        half = schedule("poisson", max(1.0, capacity / 2), plan.seconds, plan.seed)
        same = schedule("poisson", plan.rate, plan.seconds, plan.seed)
        return {
            "busy": busy,
            "half": _counted(server, place, tree, lambda: load.open_loop(ask, half)),
            "same": _counted(server, place, tree, lambda: load.open_loop(ask, same)),
        }


def _counted(server: Server, place: Place, tree: Tree, run: Any) -> dict[str, Any]:
    time.sleep(_SETTLED_S)
    calls, rows = server.counts(place)
    cpu = tree.cpu_seconds()
    outcome: Outcome = run()
    cpu = tree.cpu_seconds() - cpu
    more_calls, more_rows = server.counts(place)
    if not outcome.answered:
        raise RuntimeError(f"{server.name} answered nothing: {outcome.statuses}, {outcome.last_body[:200]!r}")
    return {
        "n": outcome.answered, "failed": outcome.failed, "rate": outcome.answered / outcome.seconds,
        "cpu_us": 1e6 * cpu / outcome.answered, "batch": (more_rows - rows) / max(1.0, more_calls - calls),
        "latencies": outcome.latencies, "late": outcome.late, "fell_behind": outcome.fell_behind,
    }  # fmt: skip


def _idle(tree: Tree) -> float:
    """Cores that the server takes when nobody asks."""
    time.sleep(_SETTLED_S)
    cpu = tree.cpu_seconds()
    time.sleep(1.0)
    return tree.cpu_seconds() - cpu


def _check(server: Server, wire: Wire, place: Place, expected: np.ndarray[Any, Any]) -> None:
    """Wait for the first answer, and compare its numbers."""
    ask, end = wire.ask(place), time.monotonic() + _READY_S
    with contextlib.closing(Load(place.port, 1)) as load:
        while not (outcome := load.open_loop(ask, [0.0])).answered:
            if time.monotonic() > end:
                raise RuntimeError(f"{server.name} ({wire.name}): {outcome.statuses}, {outcome.last_body[:300]!r}")
            time.sleep(0.2)
    found = wire.read(outcome.last_body)
    if found.shape != expected.shape or not np.abs(found - expected).max() <= _CLOSE * np.abs(expected).max():
        raise RuntimeError(f"{server.name} ({wire.name}) answers {found}; expected {expected}")
