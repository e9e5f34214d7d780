"""What the metrics show of the models: each change of the catalogue is told here, on the event loop."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from service.engine import Engine
from service.repository.catalogue import Repository
from service.repository.entries import Entry
from service.telemetry.metrics import Metrics


class Queue(Protocol):
    """What is asked of the batcher."""

    def waiting_rows(self, model: Engine) -> int:
        """Rows of a model that wait now."""

    def waiting_requests(self, model: Engine) -> int:
        """The requests that they came in."""


class Shown:
    """Keeps the metrics in step with the catalogue."""

    def __init__(self, metrics: Metrics, queue: Queue) -> None:
        self._metrics = metrics
        self._queue = queue

    def show(self, before: Entry | None, after: Entry) -> None:
        """A model is now like this."""
        for refusal in () if before is None else before.refused:
            self._metrics.hide_refused(after.name, refusal.version)
        for each in after.served:
            self._show_engine(each.engine)
        for refusal in after.refused:  # after the versions in service: one may be both
            self._metrics.show_refused(after.name, refusal.version, refusal.reasons[0])
        if after.unloaded:
            self._metrics.hide_model(after.name)
        else:
            self._metrics.show_model(after.name, ready=bool(after.served), fallback=after.fallback)

    def forget(self, engine: Engine, repository: Repository) -> None:
        """An engine was closed. Its successor under the same name and version, if there is one, stays shown."""
        self._metrics.forget(engine.name, engine.version)
        entry = repository.entries.get(engine.name)
        successor = None if entry is None else entry.engines.get(engine.version)
        if entry is not None and successor is not None:
            self._show_engine(successor)
            refusal = entry.find_refusal(engine.version)
            if refusal is not None:
                self._metrics.show_refused(entry.name, refusal.version, refusal.reasons[0])

    def count_load(self, name: str, outcome: str) -> None:
        """One load came to its end."""
        self._metrics.count_load(name, outcome)

    def _show_engine(self, engine: Engine) -> None:
        self._metrics.show_served(engine.name, engine.version, engine.provider, engine.digest)
        rows, requests = partial(self._queue.waiting_rows, engine), partial(self._queue.waiting_requests, engine)
        self._metrics.show_pending(engine.name, engine.version, rows, requests)
