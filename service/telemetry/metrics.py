"""Prometheus metrics in a registry of their own: counts of all workers, and what the workers say of themselves.

A label never comes from a request unless it names a model that is here: strangers must not grow the registry. Counting
is done in service.telemetry.meter and costs no more for the scrape, which adds everything up when it comes.
"""

from __future__ import annotations

import mmap
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import bnfold
from service.processes.heartbeat import HANGS
from service.processes.peers import Crew
from service.telemetry.cells import RESTARTS, Cells, Shelf
from service.telemetry.exposition import Exposition
from service.telemetry.meter import Meter, Totals, read_totals

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode("ascii")

OUTCOMES = ("success", "failure", "rollback")
_LONGEST_REASON = 300
_LOADS, _METER = "loads=", "meter="


class Metrics:
    """Every metric of one server. Counted on the event loop; `meter` and what is shown may be called in any thread.

    folder: where the workers put their counts together, None for a process on its own. worker: its number, below
    `workers`. largest_batch: batches of more rows are not told apart in the statistics.
    """

    def __init__(
        self, folder: Path | None = None, *, worker: int = 0, workers: int = 1, largest_batch: int = 1024
    ) -> None:
        self.registry = CollectorRegistry()
        self._shelf = Shelf(folder, worker)
        self._worker, self._workers, self._largest = worker, workers, largest_batch
        self._strays = Meter(self._shelf, _METER, 0)
        self._loads: dict[str, Cells] = {}
        self._lock, self._scraping = threading.Lock(), threading.Lock()
        self._pending: dict[tuple[str, str], tuple[Callable[[], int], Callable[[], int]]] = {}
        self._served: dict[tuple[str, str], tuple[str, str]] = {}
        self._refused: dict[tuple[str, str], str] = {}
        self._models: dict[str, tuple[bool, bool]] = {}
        self._connections: Callable[[], int] = _none
        self._states: Sequence[Mapping[str, Any]] = ()
        self.registry.register(_Collector(self))
        if folder is None:
            PlatformCollector(registry=self.registry)
            ProcessCollector(registry=self.registry)

    # ------------------------------------------------------------------------------------------------- counting

    def meter(self, model: str, version: str) -> Meter:
        """The counts of one served version; each call is one use of them, and `forget` ends one."""
        return Meter(self._shelf, f"{_METER}{model}={version}", self._largest)

    def forget(self, model: str, version: str) -> None:
        """A version is served no more: free what it held."""
        key = model, version
        with self._lock:
            for shown in (self._pending, self._served, self._refused):
                shown.pop(key, None)
        self._shelf.forget(f"{_METER}{model}={version}")

    def hide_model(self, model: str) -> None:
        """A model is unloaded: neither ready nor not; what was counted of it stays."""
        with self._lock:
            self._models.pop(model, None)

    def forget_model(self, model: str) -> None:
        """A model is gone from the repository, all its versions included."""
        with self._lock:
            self._models.pop(model, None)
            for key in [key for key in self._refused if key[0] == model]:
                del self._refused[key]
            known = self._loads.pop(model, None)
        if known is not None:
            self._shelf.forget(_LOADS + model)

    def count_stray(self, reason: str, seconds: float = 0.0) -> None:
        """A request for a model that is not served here failed."""
        self._strays.count_failure(reason, seconds)

    def count_load(self, model: str, outcome: str) -> None:
        """A version was loaded ("success"), was not ("failure"), or an older one came back for it ("rollback")."""
        with self._lock:
            self._loads_of(model)[1 + OUTCOMES.index(outcome)] += 1.0

    def _loads_of(self, model: str) -> Cells:
        cells = self._loads.get(model)
        if cells is None:
            cells = self._loads[model] = self._shelf.open(_LOADS + model, 1 + len(OUTCOMES))
        return cells

    # ------------------------------------------------------------------------------------------------ showing

    def show_pending(
        self, model: str, version: str, rows: Callable[[], int], requests: Callable[[], int] | None = None
    ) -> None:
        """Where to ask for the rows and the requests of a version that wait now."""
        with self._lock:
            self._pending[model, version] = rows, requests or _none

    def show_connections(self, count: Callable[[], int]) -> None:
        """Where to ask for the connections that are open now."""
        self._connections = count

    def show_served(self, model: str, version: str, provider: str, digest: str) -> None:
        """A version is served."""
        with self._lock:
            self._served[model, version] = provider, digest
            self._refused.pop((model, version), None)

    def show_refused(self, model: str, version: str, reason: str) -> None:
        """A version is not served, and why."""
        with self._lock:
            self._refused[model, version] = reason[:_LONGEST_REASON]

    def hide_refused(self, model: str, version: str) -> None:
        """A refused version is gone, or about to be tried again."""
        with self._lock:
            self._refused.pop((model, version), None)

    def show_model(self, model: str, *, ready: bool, fallback: bool) -> None:
        """What became of a model. Its loads are shown from now on: Prometheus must see the count before the first."""
        with self._lock:
            self._models[model] = ready, fallback
            self._loads_of(model)

    # ------------------------------------------------------------------------------------------------ reading

    def gauges(self) -> dict[str, Any]:
        """What this worker says of itself now, JSON-ready, for the one that is scraped."""
        with self._lock:
            pending = [[*key, rows(), requests()] for key, (rows, requests) in self._pending.items()]
            return {
                "worker": self._worker,
                "pending": pending,
                "served": [[*key, *values] for key, values in self._served.items()],
                "refused": [[*key, reason] for key, reason in self._refused.items()],
                "models": [[model, *values] for model, values in self._models.items()],
                "connections": self._connections(),
                "cpu_seconds": time.process_time(),
                "memory_bytes": _resident_bytes(),
            }

    def page(self, others: Sequence[Mapping[str, Any]] = ()) -> bytes:
        """The text that Prometheus scrapes; in any thread, as it takes 2 ms a model.

        others: the gauges of the other workers that answer.
        """
        with self._scraping:
            self._states = others
            try:
                return generate_latest(self.registry)
            finally:
                self._states = ()

    def collect(self) -> Iterator[Metric]:
        """Everything, for the registry."""
        found = Exposition()
        for model, version, totals in self._totals():
            found.add_version(model, version, totals)
        for name in self._named(_LOADS):
            counts = self._shelf.total(_LOADS + name, 1 + len(OUTCOMES))[1:]
            for outcome, count in zip(OUTCOMES, counts, strict=True):
                found.add("model_loads", (name, outcome), count)
        states = [self.gauges(), *self._states]
        _add_states(found, states)
        present = {state["worker"] for state in states}
        restarts, hangs = (self._shelf.total(name, 1 + self._workers)[1:] for name in (RESTARTS, HANGS))
        for worker in range(self._workers):
            found.add("worker_up", (str(worker),), worker in present)
            found.add("worker_restarts", (str(worker),), restarts[worker])
            found.add("worker_hangs", (str(worker),), hangs[worker])
        found.add("build_info", (bnfold.__version__, platform.python_version(), _runtime_version()), 1)
        return found.metrics()

    def _totals(self) -> Iterator[tuple[str, str, Totals]]:
        for name in self._named(_METER):
            model, _, version = name.partition("=")
            if model:
                yield model, version, read_totals(self._shelf, _METER + name, self._largest)
        yield "", "", self._strays.totals()

    def _named(self, kind: str) -> list[str]:
        return [name.removeprefix(kind) for name in self._shelf.names() if name.startswith(kind)]


def open_metrics(crew: Crew | None, largest_batch: int) -> Metrics:
    """The metrics of a process on its own, or of one of several workers."""
    if crew is None:
        return Metrics(largest_batch=largest_batch)
    return Metrics(crew.counts, worker=crew.worker, workers=crew.workers, largest_batch=largest_batch)


class _Collector(Collector):
    """What the registry holds: the metrics themselves, without a method that it would take for a description."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Everything."""
        return self._metrics.collect()


def _add_states(found: Exposition, states: Sequence[Mapping[str, Any]]) -> None:
    """What waits and is connected, added up; a model is ready when it is so in every worker."""
    pending: dict[tuple[str, str], tuple[int, int]] = {}
    models: dict[str, tuple[bool, bool]] = {}
    infos, refusals = {}, {}
    for state in states:
        for model, version, rows, requests in state["pending"]:
            before = pending.get((model, version), (0, 0))
            pending[model, version] = before[0] + rows, before[1] + requests
        for model, ready, fallback in state["models"]:
            one = models.get(model, (True, False))
            models[model] = one[0] and ready, one[1] or fallback
        infos.update({tuple(info): 1 for info in state["served"]})
        refusals.update({tuple(refusal[:2]): refusal[2] for refusal in state["refused"]})
        worker = (str(state["worker"]),)
        found.add("connections", worker, state["connections"])
        found.add("worker_cpu_seconds", worker, state["cpu_seconds"])
        found.add("worker_memory_bytes", worker, state["memory_bytes"])
    for key, (rows, requests) in pending.items():
        found.add("inference_pending_rows", key, rows)
        found.add("inference_pending_requests", key, requests)
    for model, (ready, fallback) in models.items():
        found.add("model_ready", (model,), ready)
        found.add("model_fallback", (model,), fallback)
    for info in infos:
        found.add("model_info", info, 1)
    for key, reason in refusals.items():
        found.add("model_refused", (*key, reason), 1)


def _runtime_version() -> str:
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _resident_bytes() -> int:
    """Memory of this process that is not swapped out; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def _none() -> int:
    return 0
