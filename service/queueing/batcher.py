"""The workers in front of the runtime: what waits is run together, and each caller gets its own rows back.

A worker takes what waits for one model and one shape, up to `max_batch_rows`, and waits for more only when `max_delay`
says so. A batch that is known to be short runs on the event loop itself: two threads that hand a small network's
tensors to and fro spend as much time on the interpreter's lock as in the network. Models take turns by the seconds of
runtime that they have had (start-time fair queueing, Goyal et al. 1996), so that a greedy one cannot starve another.
The queue is bounded in rows, and a request that could not be answered before its deadline is refused at once. One that
is cancelled or out of time never reaches the runtime.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue

from service.errors import Busy, Disconnected, Expired
from service.queueing.admission import Admission, learn
from service.queueing.backlog import DEFAULT_PRIORITY, PRIORITIES, Array, Backlog, Model, OnAnswer, Outputs, Ticket
from service.queueing.batches import Run, run_together
from service.queueing.deadlines import Deadlines

_logger = logging.getLogger(__name__)
_PATIENCE = 10.0  # seconds that stop() gives a worker that is still inside the runtime

Answers = Sequence[Outputs | Exception]


class Batcher:
    """Worker threads behind a bounded queue. start, infer, submit, cancel and stop belong to one event loop.

    max_inline: seconds of a batch up to which it runs on that loop; 0 for never.
    """

    def __init__(
        self,
        *,
        workers: int,
        max_batch_rows: int,
        max_queue_rows: int,
        max_delay: float = 0.0,
        max_inline: float = 0.0,
    ) -> None:
        self._workers = workers
        self._max_batch_rows = max_batch_rows
        self._admission = Admission(workers, max_batch_rows, max_queue_rows)
        self._max_delay = max_delay
        self._max_inline = max_inline
        self._lock = threading.Lock()
        # Models whose batch may be run now. While there is one, a worker is awake or a token is on its way to it, or
        # the loop will look at it in its next turn.
        self._ripe: dict[Backlog, None] = {}
        self._turn_due = False
        self._held: dict[Backlog, asyncio.TimerHandle] = {}
        self._idle = 0
        self._tokens: SimpleQueue[None] = SimpleQueue()  # a worker sleeps in C until there is one
        self._clock = 0.0  # the turn of the model that was served last
        self._running = 0.0  # seconds that the batches in the runtime are expected to take
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        self._deadlines = Deadlines(self._expire)

    def start(self) -> None:
        """Start the workers; answers are delivered on the running loop."""
        self._loop = asyncio.get_running_loop()
        for number in range(self._workers):
            thread = threading.Thread(target=self._work, name=f"bnfold-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    async def stop(self) -> None:
        """Finish what is queued, then end the workers."""
        with self._lock:
            self._stopped = True
            for backlog in list(self._held):
                self._ripen(backlog)
            sleeping, self._idle = self._idle, 0
        for _ in range(sleeping):
            self._tokens.put(None)
        await asyncio.to_thread(self._join)
        self._deadlines.close()

    @staticmethod
    def waiting_rows(model: Model) -> int:
        """Rows of a model in the queue now."""
        return model.backlog.rows

    @staticmethod
    def waiting_requests(model: Model) -> int:
        """Requests of a model in the queue now."""
        return model.backlog.tickets

    async def infer(
        self,
        model: Model,
        inputs: Mapping[str, Array],
        rows: int,
        *,
        timeout: float,
        priority: int = 0,
        gone: Callable[[], Awaitable[None]] | None = None,
    ) -> tuple[Outputs, float]:
        """Run a request; gives its outputs and the seconds it waited in the queue.

        inputs: in the order of the model's inputs, each with `rows` rows along axis 0. priority: 1 goes first; 0, or
        one that there is not, is the default. gone: returns when the client has left. Raises Busy (queue full, no
        answer to be expected in time, stopping), Expired (`timeout` seconds over), Disconnected, ModelFault.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outputs] = loop.create_future()
        ticket = self.submit(model, inputs, rows, timeout, priority, partial(_settle, future))
        # A ticket that is taken at once is not worth a task that waits for the client to leave.
        watch = None if gone is None or ticket.immediate else loop.create_task(self._watch(ticket, gone))
        try:
            return await future, ticket.started - ticket.queued
        except asyncio.CancelledError:
            self.cancel(ticket)
            if not future.cancelled():
                future.exception()  # seen, also when this task was cancelled at the same moment
            raise
        finally:
            if watch is not None:
                watch.cancel()

    def submit(
        self,
        model: Model,
        inputs: Mapping[str, Array],
        rows: int,
        timeout: float,
        priority: int,
        answer: OnAnswer,
    ) -> Ticket:
        """Queue a request; `answer` is told what becomes of it, on the loop and never before this returns.

        Raises Busy.
        """
        loop = self._loop
        if loop is None or self._stopped:
            raise Busy("the server is stopping; try again elsewhere")
        level = priority if 1 <= priority <= PRIORITIES else DEFAULT_PRIORITY
        ticket = Ticket(model, inputs, rows, level, time.perf_counter(), timeout, answer)
        backlog = model.backlog
        with self._lock:
            if backlog.tickets:
                self._admission.check(ticket, backlog, self._ripe, self._running)
            backlog.add(ticket)
            if backlog not in self._ripe:
                if self._max_delay and model.batchable and backlog.rows < self._max_batch_rows:
                    self._hold(backlog, loop)
                else:
                    self._ripen(backlog)
            ticket.immediate = self._call(backlog, loop)
        self._deadlines.add(ticket, loop)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Take a ticket out of the queue if it is still there; its answer is not wanted any more."""
        if not ticket.done:
            ticket.done = True
            self._deadlines.remove(ticket)
            self._leave(ticket)

    # -------------------------------------------------------------------------------------------- answers, deadlines

    def _expire(self, ticket: Ticket) -> None:
        learn(ticket)
        self._fail(ticket, _expired(ticket))

    async def _watch(self, ticket: Ticket, gone: Callable[[], Awaitable[None]]) -> None:
        await gone()
        self._fail(ticket, Disconnected())

    def _fail(self, ticket: Ticket, problem: Exception) -> None:
        if not ticket.done:
            self.cancel(ticket)
            _answer(ticket, problem)

    def _deliver(self, batch: Sequence[Ticket], answers: Answers, runs: Sequence[Run]) -> None:
        """Once a batch."""
        if runs:
            count = batch[0].model.count_batch
            for run in runs:
                count(*run)
        for ticket, answer in zip(batch, answers, strict=True):
            if not ticket.done:
                ticket.done = True
                self._deadlines.remove(ticket)
                learn(ticket)
                _answer(ticket, answer)

    def _leave(self, ticket: Ticket) -> None:
        if not ticket.waiting:  # it never waits again
            return
        with self._lock:
            if ticket.waiting:
                backlog = ticket.model.backlog
                backlog.remove(ticket)
                if not backlog.tickets:
                    self._ripe.pop(backlog, None)

    # ------------------------------------------------------------------------------------------------ under the lock

    def _hold(self, backlog: Backlog, loop: asyncio.AbstractEventLoop) -> None:
        if backlog not in self._held:
            self._held[backlog] = loop.call_later(self._max_delay, self._end_hold, backlog, loop)

    def _end_hold(self, backlog: Backlog, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._ripen(backlog)
            self._call(backlog, loop)

    def _ripen(self, backlog: Backlog) -> None:
        """Let workers take what waits for a model."""
        timer = self._held.pop(backlog, None)
        if timer is not None:
            timer.cancel()
        if backlog.tickets:
            backlog.turn = max(backlog.turn, self._clock)
            self._ripe[backlog] = None

    def _call(self, backlog: Backlog, loop: asyncio.AbstractEventLoop) -> bool:
        """Let what waits be run, here or by a worker; whether somebody takes it at once."""
        if self._max_inline and backlog in self._ripe:
            short = backlog.short_rows(self._max_inline)
            if short:
                if not self._turn_due:
                    self._turn_due = True
                    loop.call_soon(self._run_short, loop)
                return backlog.rows <= short
        return self._wake()

    def _wake(self) -> bool:
        """Wake a worker if there is something for it and one sleeps."""
        if self._idle and self._needs_worker():
            self._idle -= 1
            self._tokens.put(None)
            return True
        return False

    def _needs_worker(self) -> bool:
        """Whether there is something that the loop does not run in its next turn."""
        if not self._turn_due or self._stopped or not self._ripe:
            return bool(self._ripe)
        waiting = 0.0
        for backlog in self._ripe:
            if not backlog.short_rows(self._max_inline):
                return True
            waiting += backlog.cost(backlog.rows)
        return waiting > self._max_inline

    def _take(self, backlog: Backlog, most: int, *, turns: bool = True) -> tuple[list[Ticket], list[Ticket], float]:
        """A batch of a model, what was found too late, and the seconds that it is expected to take.

        turns: whether the model is charged with them, as for a worker's time.
        """
        batch, late = backlog.take(min(most, self._max_batch_rows), time.perf_counter())
        if not backlog.tickets:
            del self._ripe[backlog]
        cost = backlog.cost(sum([ticket.rows for ticket in batch]))
        if turns:
            self._clock = backlog.turn
            backlog.turn += cost
        elif backlog.tickets:  # on the loop, where no batch is long, it is the next one's turn
            self._ripe[backlog] = self._ripe.pop(backlog)
        self._running += cost
        self._wake()
        return batch, late, cost

    # --------------------------------------------------------------------------------------------------- on the loop

    def _run_short(self, loop: asyncio.AbstractEventLoop) -> None:
        """At the end of a turn of the loop, when all has been read that had arrived: run one short batch."""
        with self._lock:
            backlog = self._find_short()
            if backlog is not None:
                batch, late, cost = self._take(backlog, backlog.short_rows(self._max_inline), turns=False)
        try:
            if backlog is not None:
                answers, runs = self._run(batch, late, cost, turns=False)
                self._deliver(batch + late, answers, runs)
        finally:  # without a next turn, or a worker, the rest would wait for ever
            with self._lock:
                if self._find_short() is not None:
                    loop.call_soon(self._run_short, loop)
                else:
                    self._turn_due = False
                    self._wake()

    def _find_short(self) -> Backlog | None:
        """The model whose turn it is among those that have a short batch."""
        return next((backlog for backlog in self._ripe if backlog.short_rows(self._max_inline)), None)

    # ------------------------------------------------------------------------------------- in the workers' threads

    def _work(self) -> None:
        while True:
            batch: list[Ticket] = []
            late: list[Ticket] = []
            cost = 0.0
            with self._lock:
                if self._needs_worker():
                    backlog = next(iter(self._ripe)) if len(self._ripe) == 1 else min(self._ripe, key=_turn)
                    batch, late, cost = self._take(backlog, self._max_batch_rows)
                elif self._stopped and not self._held:
                    return
                else:
                    self._idle += 1
            if batch or late:
                self._hand_over(batch + late, *self._run(batch, late, cost))
            else:
                self._tokens.get()

    def _hand_over(self, tickets: list[Ticket], answers: Answers, runs: Sequence[Run]) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._deliver, tickets, answers, runs)
        except RuntimeError:  # the loop was closed by force: there is nobody left to answer
            _logger.debug("%d answers came after the end of the loop", len(answers))

    def _run(
        self, batch: list[Ticket], late: list[Ticket], cost: float, *, turns: bool = True
    ) -> tuple[Answers, list[Run]]:
        """The answers of those that were taken, and how their runs are counted."""
        answers: list[Outputs | Exception] = []
        runs: list[Run] = []
        if batch:
            started = time.perf_counter()
            for ticket in batch:
                ticket.started = started
            answers = run_together(batch, runs)
            spent = time.perf_counter() - started
            with self._lock:
                backlog = batch[0].model.backlog
                if turns:
                    backlog.turn += spent - cost
                self._running -= cost
                failed = any(isinstance(answer, Exception) for answer in answers)  # which may take no time at all
                backlog.measure(sum([ticket.rows for ticket in batch]), spent, None if failed else batch[0].shapes)
        return answers + [_expired(ticket) for ticket in late], runs

    def _join(self) -> None:
        until = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


def _turn(backlog: Backlog) -> float:
    return backlog.turn


def _expired(ticket: Ticket) -> Expired:
    return Expired(f"no answer within {ticket.timeout:g} s; try again, or allow more time")


def _settle(future: asyncio.Future[Outputs], _: Ticket, answer: Outputs | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _answer(ticket: Ticket, answer: Outputs | Exception) -> None:
    try:
        ticket.answer(ticket, answer)
    except Exception:  # one that fails must not keep its neighbours from their answers
        _logger.exception("an answer of model %s could not be given", ticket.model.label)
