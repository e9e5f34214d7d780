"""Prometheus metrics in a registry of their own, with the meanings that Triton gives to the like.

A label never comes from a request unless it names a model that is here: strangers must not grow the registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode("ascii")

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_LONGEST_REASON = 300
_MODEL = ("model", "version")


class Metrics:
    """Every metric of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        PlatformCollector(registry=self.registry)
        ProcessCollector(registry=self.registry)
        self._success = self._counter("request_success", "Requests that were answered")
        self._failure = self._counter(
            "request_failure",
            "Requests that were not answered, by reason; model is empty where the request named none that is here",
            "reason",
        )
        self._inferences = self._counter("count", "Rows run, batching included")
        self._executions = self._counter("exec_count", "Calls of the runtime")
        self._request = self._histogram(
            "request_duration_seconds", "From the head of a request to its answer", _SECONDS
        )
        self._queue = self._histogram("queue_duration_seconds", "What a request waited for a worker", _SECONDS)
        self._compute = self._histogram(
            "compute_duration_seconds", "One call of the runtime, joining and splitting included", _SECONDS
        )
        self._batch = self._histogram("batch_rows", "Rows in one call of the runtime", _ROWS)
        self._pending = self._gauge("inference_pending_rows", "Rows that wait in the queue now", *_MODEL)
        self._info = self._gauge(
            "model_info",
            "1 for each version that is served, with the provider in use and the sha256 of model.onnx",
            *_MODEL, "provider", "digest",
        )  # fmt: skip
        self._refused = self._gauge(
            "model_refused", "1 for each version that did not pass the load gate, with the reason", *_MODEL, "reason"
        )
        self._fallback = self._gauge("model_fallback", "1 where a version older than the newest is served", "model")
        self._ready = self._gauge("model_ready", "1 where a proven version is served", "model")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"bnfold_inference_{name}", text, (*_MODEL, *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"bnfold_inference_{name}", text, _MODEL, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"bnfold_{name}", text, labels, registry=self.registry)

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def meter(self, model: str, version: str) -> Meter:
        """The metrics of one served version, their labels bound once."""
        return Meter(
            success=self._success.labels(model, version),
            failure=lambda reason: self._failure.labels(model, version, reason),
            inferences=self._inferences.labels(model, version),
            executions=self._executions.labels(model, version),
            request=self._request.labels(model, version),
            queue=self._queue.labels(model, version),
            compute=self._compute.labels(model, version),
            batch=self._batch.labels(model, version),
        )

    def show_pending(self, model: str, version: str, pending: Callable[[], int]) -> None:
        """Where to ask for the rows of a version that wait now."""
        self._pending.labels(model, version).set_function(pending)

    def count_stray(self, reason: str) -> None:
        """A request for a model that is not served here failed."""
        self._failure.labels("", "", reason).inc()

    def show_served(self, model: str, version: str, provider: str, digest: str) -> None:
        """A version is served."""
        self._info.labels(model, version, provider, digest).set(1)

    def show_refused(self, model: str, version: str, reason: str) -> None:
        """A version is not served, and why."""
        self._refused.labels(model, version, reason[:_LONGEST_REASON]).set(1)

    def show_model(self, model: str, *, ready: bool, fallback: bool) -> None:
        """What became of a model."""
        self._ready.labels(model).set(int(ready))
        self._fallback.labels(model).set(int(fallback))


@dataclass(frozen=True, eq=False)
class Meter:
    """The metrics of one served version."""

    success: Counter
    failure: Callable[[str], Counter]
    inferences: Counter
    executions: Counter
    request: Histogram
    queue: Histogram
    compute: Histogram
    batch: Histogram

    def count_batch(self, rows: int, seconds: float) -> None:
        """One call of the runtime."""
        self.inferences.inc(rows)
        self.executions.inc()
        self.batch.observe(rows)
        self.compute.observe(seconds)

    def count_answer(self, seconds: float, queued: float) -> None:
        """One request was answered, after so many seconds, of which `queued` in the queue."""
        self.success.inc()
        self.request.observe(seconds)
        self.queue.observe(queued)

    def count_failure(self, reason: str) -> None:
        """One request failed."""
        self.failure(reason).inc()
