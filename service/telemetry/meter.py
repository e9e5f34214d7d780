"""What is counted of one served version, with the meanings that Triton gives to the like.

Everything is counted on the event loop, so no lock is needed, and into cells that are only read elsewhere. Success and
failure count requests; inferences count rows, executions calls of the runtime. A request is given the whole time of the
batch that it ran in; the histograms of the three compute stages have one observation a batch.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from service.telemetry.cells import Shelf

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STAGES = ("input", "infer", "output")
OTHER = "other"
REASONS = (
    OTHER, "internal", "bad_request", "too_large", "unknown_model", "unknown_path", "bad_method", "bad_encoding",
    "unsupported", "slow_client", "busy", "not_ready", "expired", "model", "client_gone", "unauthorized", "forbidden",
    "cancelled", "load_failed", "unsaved",
)  # fmt: skip

_BUCKETS = len(SECONDS) + 1
_SUCCESS, _SUCCESS_S, _QUEUE_S, _FAIL_S, _COMPUTED, _COMPUTE_S, _ROWS, _LAST = 1, 2, 3, 4, 5, 6, 9, 10
_FAIL = 16
_REQUEST = _FAIL + 32
_QUEUE = _REQUEST + _BUCKETS
_COMPUTE = _QUEUE + _BUCKETS
_SIZES = _COMPUTE + 3 * _BUCKETS
_BY_SIZE = 4  # executions, and the seconds of the three stages
_SLOT = {reason: _FAIL + at for at, reason in enumerate(REASONS)}
_LARGEST = 4096


@dataclass(frozen=True)
class Histogram:
    """Observations by bucket, not cumulated, the one above the last bound included; and their sum."""

    counts: Sequence[float]
    sum: float


@dataclass(frozen=True)
class BatchSize:
    """All executions of so many rows. seconds: of the three compute stages."""

    rows: int
    executions: float
    seconds: Sequence[float]


class Totals:
    """The counts of one version, summed over the workers."""

    def __init__(self, cells: Sequence[float]) -> None:
        self._cells = cells
        self.success, self.success_seconds = cells[_SUCCESS], cells[_SUCCESS_S]
        self.queue_seconds, self.failure_seconds = cells[_QUEUE_S], cells[_FAIL_S]
        self.computed = cells[_COMPUTED]  # requests that the runtime was called for
        self.compute_seconds = tuple(cells[_COMPUTE_S : _COMPUTE_S + 3])  # each batch once for each of its requests
        self.rows = cells[_ROWS]
        self.last = cells[_LAST]  # ms since 1970

    @property
    def failures(self) -> dict[str, float]:
        """Failed requests by reason; those that never happened are left out."""
        return {reason: self._cells[slot] for reason, slot in _SLOT.items() if self._cells[slot]}

    @property
    def executions(self) -> float:
        """Calls of the runtime."""
        return float(sum(self._cells[_SIZES::_BY_SIZE]))

    @property
    def sizes(self) -> list[BatchSize]:
        """Executions by rows, those of more rows than are told apart left out."""
        cells = self._cells
        starts = range(_SIZES + _BY_SIZE, len(cells), _BY_SIZE)
        return [
            BatchSize(rows, cells[at], cells[at + 1 : at + _BY_SIZE])
            for rows, at in enumerate(starts, start=1)
            if cells[at]
        ]

    @property
    def request(self) -> Histogram:
        """From the head of a request to its answer."""
        return Histogram(self._cells[_REQUEST:_QUEUE], self.success_seconds)

    @property
    def queue(self) -> Histogram:
        """The wait for a worker thread."""
        return Histogram(self._cells[_QUEUE:_COMPUTE], self.queue_seconds)

    def compute(self, stage: int) -> Histogram:
        """One stage of each execution."""
        start = _COMPUTE + stage * _BUCKETS
        return Histogram(self._cells[start : start + _BUCKETS], sum(self._cells[_SIZES + 1 + stage :: _BY_SIZE]))

    @property
    def batch_rows(self) -> Histogram:
        """Rows of each execution."""
        counts = [0.0] * (len(ROWS) + 1)
        for size in self.sizes:
            counts[bisect_left(ROWS, size.rows)] += size.executions
        counts[-1] += self._cells[_SIZES]
        return Histogram(counts, self.rows)


class Meter:
    """Counts one version in one process. Every method that counts belongs to the event loop.

    largest: batches of more rows are counted, but not told apart by their size.
    """

    __slots__ = ("_cells", "_largest", "_shelf", "name")

    def __init__(self, shelf: Shelf, name: str, largest: int) -> None:
        self.name = name
        self._shelf = shelf
        self._largest = min(largest, _LARGEST)
        self._cells = shelf.open(name, _size(largest))

    def count_batch(
        self, rows: int, input_seconds: float, infer_seconds: float, output_seconds: float, requests: int = 1
    ) -> None:
        """One call of the runtime: joining the inputs, the call, and splitting the outputs, for so many requests."""
        cells = self._cells
        at = _SIZES + _BY_SIZE * rows if rows <= self._largest else _SIZES
        cells[at] += 1.0
        cells[at + 1] += input_seconds
        cells[at + 2] += infer_seconds
        cells[at + 3] += output_seconds
        cells[_COMPUTE + bisect_left(SECONDS, input_seconds)] += 1.0
        cells[_COMPUTE + _BUCKETS + bisect_left(SECONDS, infer_seconds)] += 1.0
        cells[_COMPUTE + 2 * _BUCKETS + bisect_left(SECONDS, output_seconds)] += 1.0
        cells[_COMPUTED] += requests
        cells[_COMPUTE_S] += input_seconds * requests
        cells[_COMPUTE_S + 1] += infer_seconds * requests
        cells[_COMPUTE_S + 2] += output_seconds * requests
        cells[_ROWS] += rows
        cells[_LAST] = time.time() * 1e3

    def count_answer(self, seconds: float, queued: float) -> None:
        """One request was answered, after so many seconds, of which `queued` in the queue."""
        cells = self._cells
        cells[_SUCCESS] += 1.0
        cells[_SUCCESS_S] += seconds
        cells[_QUEUE_S] += queued
        cells[_REQUEST + bisect_left(SECONDS, seconds)] += 1.0
        cells[_QUEUE + bisect_left(SECONDS, queued)] += 1.0

    def count_failure(self, reason: str, seconds: float = 0.0) -> None:
        """One request failed, after so many seconds."""
        cells = self._cells
        cells[_SLOT.get(reason, _FAIL)] += 1.0
        cells[_FAIL_S] += seconds

    def totals(self) -> Totals:
        """What was counted, by all workers."""
        return read_totals(self._shelf, self.name, self._largest)


def read_totals(shelf: Shelf, name: str, largest: int) -> Totals:
    """What all workers counted of a version that this one may not serve."""
    return Totals(shelf.total(name, _size(largest)))


def _size(largest: int) -> int:
    return _SIZES + _BY_SIZE * (min(largest, _LARGEST) + 1)
