"""Whether a request may wait: not when the queue is full, nor when its answer would come after its deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass

from service.errors import Busy
from service.queueing.backlog import Backlog, Ticket

_FAR = 4.0  # times an expectation, beyond which a deadline is no concern


@dataclass(frozen=True)
class Admission:
    """The bounds of one queue. workers: that run batches beside each other."""

    workers: int
    max_batch_rows: int
    max_queue_rows: int

    def check(self, ticket: Ticket, backlog: Backlog, ripe: Collection[Backlog], running: float) -> None:
        """Raise Busy rather than let a request wait that finds the queue full or would be answered too late.

        ripe: what waits of all models. running: seconds that the batches in the runtime are expected to take. Only to
        be asked when something waits already, so that a measure that is wrong is always measured anew.
        """
        if backlog.rows + ticket.rows > self.max_queue_rows:
            excess = backlog.rows + ticket.rows - self.max_queue_rows
            raise Busy(
                f"{backlog.rows} rows wait for model {ticket.model.label} already; try again",
                _whole_seconds(backlog.cost(excess) / self.workers),
            )
        if not backlog.pace:
            return
        if len(ripe) < 2 and _FAR * (running + backlog.cost(2 * backlog.rows + ticket.rows)) < ticket.timeout:
            return  # more than that is not expected: all that waits, and a batch of all that waits and this one
        ticket.expected = self._expect(ticket, backlog, ripe, running)
        expected = backlog.margin * ticket.expected
        if expected > ticket.timeout:
            raise Busy(
                f"an answer from model {ticket.model.label} is to be expected in {expected:.3g} s, and the request "
                f"allows {ticket.timeout:.3g} s; try again later, or allow more time",
                _whole_seconds(expected - ticket.timeout),
            )

    def _expect(self, ticket: Ticket, backlog: Backlog, ripe: Collection[Backlog], running: float) -> float:
        """The seconds until a new ticket would be answered: those before it, its share beside other models, itself."""
        before = backlog.rows_before(ticket.level)
        own = backlog.cost(before)
        batch = backlog.cost(max(ticket.rows, min(self.max_batch_rows, before + ticket.rows)))
        others = 0.0
        if len(ripe) > 1:
            others = sum(min(own + batch, other.cost(other.rows)) for other in ripe if other is not backlog)
        return (running + own + others) / self.workers + batch


def learn(ticket: Ticket) -> None:
    """Compare with what was expected, where that came near the deadline; elsewhere it decides nothing."""
    if ticket.expected * _FAR > ticket.timeout:
        ticket.model.backlog.learn(ticket.expected, time.perf_counter() - ticket.queued)


def _whole_seconds(seconds: float) -> int:
    """For Retry-After: whole seconds, at least one."""
    return max(1, math.ceil(seconds))
