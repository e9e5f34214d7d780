"""The queue in front of the runtime: what waits is run together, and each caller gets its own rows back.

Requests wait in lanes, one for each model and shape, so that shapes never mix; the lanes take turns. A worker takes
what its lane holds, up to `max_batch_rows`, without waiting for more. Bounded in rows: a full queue answers at once.
A request that is cancelled while it waits leaves the queue and never reaches the runtime.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np

from service.errors import Busy, Disconnected, Expired, Fault, ModelFault

Array = np.ndarray[Any, np.dtype[Any]]
Outputs = Mapping[str, Array]

_logger = logging.getLogger(__name__)
_PATIENCE = 10.0  # seconds that stop() gives a worker that is still inside the runtime


class Model(Protocol):
    """What the batcher needs to know of a model."""

    @property
    def label(self) -> str:
        """How messages name it."""

    @property
    def batchable(self) -> bool:
        """Whether rows of different requests may be run together: axis 0 of every tensor is the batch."""

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        """Run the model, in any thread. Raises ModelFault."""

    def count_batch(self, rows: int, seconds: float) -> None:
        """Told of every run, also one that failed, in the worker's thread."""


class Ticket:
    """One request in the queue. Times are of `time.perf_counter`."""

    __slots__ = ("future", "immediate", "inputs", "lane", "model", "queued", "rows", "started", "waiting")

    def __init__(self, model: Model, inputs: Mapping[str, Array], rows: int, future: asyncio.Future[Outputs]) -> None:
        self.model = model
        self.inputs = inputs
        self.rows = rows
        self.future = future
        self.lane: Any = None
        self.waiting = True
        self.immediate = False
        self.queued = time.perf_counter()
        self.started = self.queued


class Batcher:
    """Worker threads behind a bounded queue. start, infer, cancel and stop belong to one event loop."""

    def __init__(self, *, workers: int, max_batch_rows: int, max_queue_rows: int) -> None:
        self._workers = workers
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._lock = threading.Lock()
        self._lanes: OrderedDict[Any, deque[Ticket]] = OrderedDict()
        self._waiting_rows: Counter[Model] = Counter()
        self._waiting = 0
        self._running = 0
        # One token a ticket: a worker sleeps in C until there is one. Never fewer tokens than tickets.
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False

    def start(self) -> None:
        """Start the workers; answers are delivered on the running loop."""
        self._loop = asyncio.get_running_loop()
        for number in range(self._workers):
            thread = threading.Thread(target=self._work, name=f"bnfold-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    async def stop(self) -> None:
        """Finish what is queued, then end the workers."""
        self._stopped = True
        self._tokens.put(False)
        await asyncio.to_thread(self._join)

    def waiting_rows(self, model: Model) -> int:
        """Rows of a model in the queue now."""
        return self._waiting_rows[model]

    async def infer(
        self,
        model: Model,
        inputs: Mapping[str, Array],
        rows: int,
        *,
        timeout: float,
        gone: Callable[[], Awaitable[None]] | None = None,
    ) -> tuple[Outputs, float]:
        """Run a request; gives its outputs and the seconds it waited in the queue.

        inputs: in the order of the model's inputs, each with `rows` rows along axis 0. gone: returns when the client
        has left. Raises Busy (queue full, stopping), Expired (`timeout` seconds over), Disconnected, ModelFault.
        """
        ticket = self.submit(model, inputs, rows)
        loop = ticket.future.get_loop()
        timer = loop.call_later(timeout, self._expire, ticket, timeout)
        # A ticket that a free worker takes at once is not worth a task that waits for the client to leave.
        watch = None if gone is None or ticket.immediate else loop.create_task(self._watch(ticket, gone))
        try:
            return await ticket.future, ticket.started - ticket.queued
        finally:
            timer.cancel()
            if watch is not None:
                watch.cancel()
            self.cancel(ticket)
            if not ticket.future.cancelled():
                ticket.future.exception()  # seen, also when this task was cancelled at the same moment

    def submit(self, model: Model, inputs: Mapping[str, Array], rows: int) -> Ticket:
        """Queue a request. Raises Busy when the queue is full or the server is stopping."""
        if self._loop is None or self._stopped:
            raise Busy("the server is stopping; try again elsewhere")
        ticket = Ticket(model, inputs, rows, self._loop.create_future())
        shapes = tuple(array.shape[1:] for array in inputs.values()) if model.batchable else None
        ticket.lane = (model, shapes)
        with self._lock:
            waiting = self._waiting_rows[model]
            if waiting + rows > self._max_queue_rows:
                raise Busy(f"{waiting} rows wait for model {model.label} already; try again")
            self._waiting_rows[model] = waiting + rows
            self._waiting += 1
            self._lanes.setdefault(ticket.lane, deque()).append(ticket)
            ticket.immediate = self._waiting + self._running <= self._workers
        self._tokens.put(True)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Take a ticket out of the queue if it is still there; its answer is not wanted any more."""
        with self._lock:
            if ticket.waiting:
                lane = self._lanes[ticket.lane]
                lane.remove(ticket)
                if not lane:
                    del self._lanes[ticket.lane]
                self._leave(ticket)
        ticket.future.cancel()

    def _leave(self, ticket: Ticket) -> None:
        ticket.waiting = False
        self._waiting -= 1
        self._waiting_rows[ticket.model] -= ticket.rows

    def _expire(self, ticket: Ticket, timeout: float) -> None:
        self._fail(ticket, Expired(f"no answer within {timeout:g} s; try again, or allow more time"))

    async def _watch(self, ticket: Ticket, gone: Callable[[], Awaitable[None]]) -> None:
        await gone()
        self._fail(ticket, Disconnected())

    def _fail(self, ticket: Ticket, problem: Exception) -> None:
        if not ticket.future.done():
            ticket.future.set_exception(problem)
            self.cancel(ticket)

    # ------------------------------------------------------------------------------------- in the workers' threads

    def _work(self) -> None:
        while True:
            if not self._tokens.get():
                self._tokens.put(False)  # the sign to stop is for every worker
                if not self._lanes:
                    return
            batch = self._take()
            if not batch:
                continue
            try:
                self._run(batch)
            finally:
                with self._lock:
                    self._running -= 1

    def _take(self) -> list[Ticket]:
        """The tickets of the lane whose turn it is, as many as go into one batch."""
        batch: list[Ticket] = []
        rows = 0
        with self._lock:
            if not self._lanes:
                return batch
            key, lane = self._lanes.popitem(last=False)
            alone = not lane[0].model.batchable
            while lane and (not batch or (not alone and rows + lane[0].rows <= self._max_batch_rows)):
                ticket = lane.popleft()
                self._leave(ticket)
                rows += ticket.rows
                batch.append(ticket)
            if lane:
                self._lanes[key] = lane
            self._running += 1
        self._return_tokens(len(batch) - 1)
        return batch

    def _return_tokens(self, count: int) -> None:
        """Use up the tokens of the other tickets of a batch, so that no worker wakes for them."""
        for _ in range(count):
            try:
                if not self._tokens.get_nowait():
                    self._tokens.put(False)
                    return
            except Empty:  # another worker has it in its hand and will find nothing
                return

    def _run(self, batch: Sequence[Ticket]) -> None:
        started = time.perf_counter()
        for ticket in batch:
            ticket.started = started
        answers = _run_together(batch)
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(_deliver, batch, answers)
        except RuntimeError:  # the loop was closed by force: there is nobody left to answer
            _logger.debug("%d answers came after the end of the loop", len(batch))

    def _join(self) -> None:
        until = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


def _run_together(batch: Sequence[Ticket]) -> list[Outputs | Exception]:
    """One answer a ticket. When a batch fails, each of its requests is run alone: one must not spoil the others."""
    model = batch[0].model
    started = time.perf_counter()
    try:
        try:
            return _call(batch)
        finally:
            model.count_batch(sum(ticket.rows for ticket in batch), time.perf_counter() - started)
    except Exception as problem:
        if len(batch) > 1:
            return [answer for ticket in batch for answer in _run_together([ticket])]
        if isinstance(problem, Fault):
            return [problem]
        _logger.exception("model %s failed in an unforeseen way", model.label)
        return [ModelFault(f"model {model.label} failed on this input; the server's log says why")]


def _call(batch: Sequence[Ticket]) -> list[Outputs | Exception]:
    model = batch[0].model
    if len(batch) == 1:
        return [model.run(batch[0].inputs)]
    joined = {name: np.concatenate([ticket.inputs[name] for ticket in batch]) for name in batch[0].inputs}
    return list(_split(model.run(joined), [ticket.rows for ticket in batch]))


def _split(outputs: Outputs, rows: Sequence[int]) -> list[Outputs]:
    bounds = np.cumsum([0, *rows])
    if any(array.shape[:1] != (bounds[-1],) for array in outputs.values()):
        raise ModelFault("the outputs of a batch do not have its rows")
    return [{name: array[start:end] for name, array in outputs.items()} for start, end in itertools.pairwise(bounds)]


def _deliver(batch: Sequence[Ticket], answers: Sequence[Outputs | Exception]) -> None:
    """On the loop, once a batch."""
    for ticket, answer in zip(batch, answers, strict=True):
        if ticket.future.done():
            continue
        if isinstance(answer, Exception):
            ticket.future.set_exception(answer)
        else:
            ticket.future.set_result(answer)
