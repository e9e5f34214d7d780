"""The metrics as Prometheus reads them: their names, sentences and labels, in one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from service.telemetry.meter import ROWS, SECONDS, STAGES, Histogram, Totals

_PREFIX = "bnfold_"
_MODEL = ("model", "version")

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "inference_request_success": ("Requests that were answered", _MODEL),
    "inference_request_failure": (
        "Requests that were not answered, by reason; model is empty where the request named none that is here",
        (*_MODEL, "reason"),
    ),
    "inference_count": ("Rows run, batching included", _MODEL),
    "inference_exec_count": ("Calls of the runtime", _MODEL),
    "model_loads": ("Versions loaded, not loaded, or rolled back from, each worker counted", ("model", "outcome")),
    "worker_cpu_seconds": ("Processor time of a worker", ("worker",)),
    "worker_restarts": ("How often a worker that had ended was started again", ("worker",)),
    "worker_hangs": ("How often a worker was killed because its event loop did not turn", ("worker",)),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "inference_pending_rows": ("Rows that wait in the queue now", _MODEL),
    "inference_pending_requests": ("Requests that wait in the queue now", _MODEL),
    "model_info": (
        "1 for each version that is served, with the provider in use and the sha256 of model.onnx",
        (*_MODEL, "provider", "digest"),
    ),
    "model_refused": ("1 for each version that did not pass the load gate, with the reason", (*_MODEL, "reason")),
    "model_fallback": ("1 where a version older than the newest is served", ("model",)),
    "model_ready": ("1 where a proven version is served, by every worker", ("model",)),
    "connections": ("Connections that are open now", ("worker",)),
    "worker_memory_bytes": ("Memory of a worker that is not swapped out", ("worker",)),
    "worker_up": ("1 for a worker that answers, 0 for one that does not", ("worker",)),
    "build_info": ("1, with the versions in use", ("version", "python", "onnxruntime")),
}
HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "inference_request_duration_seconds": ("From the head of a request to its answer", SECONDS),
    "inference_queue_duration_seconds": ("What a request waited for a worker thread", SECONDS),
    "inference_compute_input_duration_seconds": ("Putting the inputs of one batch together", SECONDS),
    "inference_compute_infer_duration_seconds": ("One call of the runtime", SECONDS),
    "inference_compute_output_duration_seconds": ("Taking the outputs of one batch apart", SECONDS),
    "inference_batch_rows": ("Rows in one call of the runtime", ROWS),
}
_BOUNDS = {name: [*(str(float(bound)) for bound in bounds), "+Inf"] for name, (_, bounds) in HISTOGRAMS.items()}


class Exposition:
    """One page in the making."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        for name, (text, labels) in COUNTERS.items():
            self._metrics[name] = CounterMetricFamily(_PREFIX + name, text, labels=labels)
        for name, (text, labels) in GAUGES.items():
            self._metrics[name] = GaugeMetricFamily(_PREFIX + name, text, labels=labels)
        self._histograms = {
            name: HistogramMetricFamily(_PREFIX + name, text, labels=_MODEL) for name, (text, _) in HISTOGRAMS.items()
        }

    def add(self, name: str, labels: Sequence[str], value: float) -> None:
        """One sample of a counter or a gauge."""
        metric = self._metrics[name]
        if isinstance(metric, CounterMetricFamily | GaugeMetricFamily):
            metric.add_metric(labels, float(value))

    def add_version(self, model: str, version: str, totals: Totals) -> None:
        """The counts of one version; those of requests that named none have an empty model, and only failures."""
        for reason, count in totals.failures.items():
            self.add("inference_request_failure", (model, version, reason), count)
        if not model:
            return
        key = model, version
        self.add("inference_request_success", key, totals.success)
        self.add("inference_count", key, totals.rows)
        self.add("inference_exec_count", key, totals.executions)
        self._observe("request_duration_seconds", key, totals.request)
        self._observe("queue_duration_seconds", key, totals.queue)
        for at, stage in enumerate(STAGES):
            self._observe(f"compute_{stage}_duration_seconds", key, totals.compute(at))
        self._observe("batch_rows", key, totals.batch_rows)

    def metrics(self) -> Iterator[Metric]:
        """All of it."""
        yield from self._metrics.values()
        yield from self._histograms.values()

    def _observe(self, name: str, key: tuple[str, str], found: Histogram) -> None:
        name = "inference_" + name
        counts = list(zip(_BOUNDS[name], accumulate(found.counts), strict=True))
        self._histograms[name].add_metric(key, counts, found.sum)
