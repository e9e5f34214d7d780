"""What waits for one model: by priority, by shape, in order; and how long the model takes for a row.

A batch is filled from the highest priority down, with one shape. So that a stream of urgent requests cannot hold the
others up for ever, every sixteenth batch of a model that has several priorities waiting begins with the request that
waits longest (Triton leaves that open: there a lower level may starve). Shapes of one priority take turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Outputs = Mapping[str, Array]

PRIORITIES = 10  # 1 is served first
DEFAULT_PRIORITY = 5

_PATIENT_BATCHES = 16
_KEPT = 0.8  # what a batch leaves of the measure before it: a slow first call is forgotten after some thirty
_LEARNT = 1 / 16  # of the newest answer in the mean error of what was expected
_NARROWEST, _WIDEST = 1.2, 3.0
_UNKNOWN = 1e-3  # seconds that a row is charged with before the first measure


class Model(Protocol):
    """What the batcher needs to know of a model."""

    @property
    def label(self) -> str:
        """How messages name it."""

    @property
    def batchable(self) -> bool:
        """Whether rows of different requests may be run together: axis 0 of every tensor is the batch."""

    @property
    def backlog(self) -> Backlog:
        """What waits for it; the batcher alone uses it."""

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        """Run the model, in any thread. Raises ModelFault."""

    @property
    def count_batch(self) -> CountBatch:
        """Told of every run, also one that failed, on the event loop."""


class CountBatch(Protocol):
    """How a run is counted."""

    def __call__(
        self, rows: int, input_seconds: float, infer_seconds: float, output_seconds: float, requests: int, /
    ) -> None:
        """Joining the inputs, the call, and splitting the outputs, for so many requests."""


class Ticket:
    """One request in the queue. Times are of `time.perf_counter`.

    answer: called once, on the event loop, with the outputs or with what went wrong, unless the ticket is cancelled.
    immediate: a free worker was there for it. expected: seconds to its answer as foreseen at its admission, 0 if nobody
    asked.
    """

    __slots__ = (
        "answer", "deadline", "done", "expected", "immediate", "inputs", "level", "model", "queued", "rows", "shapes",
        "started", "timeout", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        model: Model,
        inputs: Mapping[str, Array],
        rows: int,
        level: int,
        queued: float,
        timeout: float,
        answer: OnAnswer,
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.rows = rows
        self.level = level
        self.queued = self.started = queued
        self.timeout = timeout
        self.deadline = queued + timeout
        self.answer = answer
        self.shapes = tuple([array.shape[1:] for array in inputs.values()]) if model.batchable else None
        self.waiting = True
        self.done = False
        self.expected = 0.0
        self.immediate = False


OnAnswer = Callable[[Ticket, Outputs | Exception], None]
Lane = OrderedDict[Ticket, None]  # a queue that a ticket can leave from the middle


class Backlog:
    """The queue of one model. Everything here is done under the batcher's lock.

    rows, tickets: that wait. pace: measured seconds a row, 0 before the first measure. turn: the seconds of runtime
    that the model has had, by which models take turns.
    """

    __slots__ = (
        "_error", "_level_rows", "_levels", "_measured", "_passed", "_rows_alike", "_rows_run", "_seconds_alike",
        "_seconds_run", "_spread", "pace", "rows", "tickets", "turn",
    )  # fmt: skip

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[Any, Lane]] = {}
        self._level_rows: dict[int, int] = {}
        self._passed = 0
        self._error = 1.0
        self._spread = 0.0
        self._rows_run = 0.0
        self._seconds_run = 0.0
        self._measured: Any = None  # the shapes of the newest measure
        self._rows_alike = self._seconds_alike = 0.0  # of these shapes alone, since the last measure of others
        self.rows = 0
        self.tickets = 0
        self.pace = 0.0
        self.turn = 0.0

    def add(self, ticket: Ticket) -> None:
        """Let a ticket wait."""
        lanes = self._levels.get(ticket.level)
        if lanes is None:
            lanes = self._levels[ticket.level] = OrderedDict()
            self._level_rows[ticket.level] = 0
        lane = lanes.get(ticket.shapes)
        if lane is None:
            lane = lanes[ticket.shapes] = OrderedDict()
        lane[ticket] = None
        self._level_rows[ticket.level] += ticket.rows
        self.rows += ticket.rows
        self.tickets += 1

    def remove(self, ticket: Ticket) -> None:
        """Let a ticket go that waits."""
        lanes = self._levels[ticket.level]
        lane = lanes[ticket.shapes]
        del lane[ticket]
        if not lane:
            del lanes[ticket.shapes]
            if not lanes:
                del self._levels[ticket.level]
        self._level_rows[ticket.level] -= ticket.rows
        ticket.waiting = False
        self.rows -= ticket.rows
        self.tickets -= 1

    def rows_before(self, level: int) -> int:
        """Rows that go before a new request of a priority."""
        if len(self._levels) == 1 and level in self._levels:
            return self.rows
        return sum([rows for other, rows in self._level_rows.items() if other <= level])

    def take(self, most: int, now: float) -> tuple[list[Ticket], list[Ticket]]:
        """The next batch, of `most` rows unless one request has more, and the tickets that were found too late.

        A batch does not grow beyond what its most urgent request has time for.
        """
        batch: list[Ticket] = []
        late: list[Ticket] = []
        level, shapes = self._choose()
        if len(self._levels) == 1:
            self._fill(batch, late, self._levels[level][shapes], most, now)
        else:
            for other in (level, *sorted(self._levels.keys() - {level})):
                lane = self._levels[other].get(shapes)
                if lane is not None and not (batch and shapes is None):
                    self._fill(batch, late, lane, most, now)
        lanes = self._levels.get(level)
        if lanes is not None and shapes in lanes:
            lanes.move_to_end(shapes)
        return batch, late

    def measure(self, rows: int, seconds: float, shapes: Any) -> None:
        """A batch of so many rows of these shapes took so long."""
        if shapes != self._measured:
            self._measured, self._rows_alike, self._seconds_alike = shapes, 0.0, 0.0
        self._rows_alike = _KEPT * self._rows_alike + rows
        self._seconds_alike = _KEPT * self._seconds_alike + seconds
        self._rows_run = _KEPT * self._rows_run + rows
        self._seconds_run = _KEPT * self._seconds_run + seconds
        self.pace = self._seconds_run / self._rows_run

    def short_rows(self, seconds: float) -> int:
        """How many of the rows that wait next are known to take no longer than this; 0 when that is not known.

        It is known of the shapes that were measured last alone: a larger picture may take a thousand times as long.
        """
        levels, shapes = self._levels, self._measured
        if shapes is None or not self._seconds_alike or len(levels) != 1:
            return 0
        lanes = next(iter(levels.values()))
        if len(lanes) != 1 or shapes not in lanes:
            return 0
        rows = int(seconds * self._rows_alike / self._seconds_alike)
        return rows if next(iter(lanes[shapes])).rows <= rows else 0

    def learn(self, expected: float, seconds: float) -> None:
        """An answer that was expected after so long took so long: the mean of the ratio, and its mean deviation."""
        off = min(seconds / expected, 2.0 * _WIDEST) - self._error  # one that hung is soon forgotten
        self._error += _LEARNT * off
        self._spread += _LEARNT * (abs(off) - self._spread)

    @property
    def margin(self) -> float:
        """What an expectation is multiplied with: four deviations above the mean, as TCP waits (RFC 6298, 2.3)."""
        return min(_WIDEST, max(_NARROWEST, self._error + 4.0 * self._spread))

    def cost(self, rows: int) -> float:
        """The seconds that a batch of so many rows will take."""
        return rows * (self.pace or _UNKNOWN)

    def _choose(self) -> tuple[int, Any]:
        levels = self._levels
        if len(levels) == 1:
            self._passed = 0
            level = next(iter(levels))
            return level, next(iter(levels[level]))
        self._passed += 1
        if self._passed >= _PATIENT_BATCHES:
            self._passed = 0
            heads = [(next(iter(lane)).queued, level, key) for level in levels for key, lane in levels[level].items()]
            _, level, shapes = min(heads, key=lambda head: head[0])
            return level, shapes
        level = min(levels)
        return level, next(iter(levels[level]))

    def _fill(self, batch: list[Ticket], late: list[Ticket], lane: Lane, most: int, now: float) -> None:
        rows = sum([ticket.rows for ticket in batch])
        room = float(most)
        if self.pace:
            for ticket in batch:
                room = min(room, (ticket.deadline - now) / self.pace)
        while lane:
            ticket = next(iter(lane))
            if ticket.deadline <= now:
                self.remove(ticket)
                late.append(ticket)
                continue
            if self.pace:
                room = min(room, (ticket.deadline - now) / self.pace)
            if (batch or late) and (ticket.shapes is None or rows + ticket.rows > room):
                return
            self.remove(ticket)
            batch.append(ticket)
            rows += ticket.rows
