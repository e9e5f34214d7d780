"""Tickets whose time is over, found by one timer for all of them: a timer each would cost every request."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from service.queueing.backlog import Ticket

_LOOK = 5e-6  # seconds a request between two looks, so that looking stays a small part of the work


class Deadlines:
    """All tickets without an answer yet, on one event loop.

    late: told of each whose deadline is over, and removes it.
    """

    def __init__(self, late: Callable[[Ticket], None]) -> None:
        self._late = late
        self._open: dict[Ticket, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at = math.inf  # when the timer looks

    def add(self, ticket: Ticket, loop: asyncio.AbstractEventLoop) -> None:
        """Watch one."""
        self._open[ticket] = None
        if ticket.deadline < self._at:
            self._look_in(ticket.timeout, ticket.deadline, loop)

    def remove(self, ticket: Ticket) -> None:
        """It has its answer, or wants none any more."""
        del self._open[ticket]

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_in(self, seconds: float, at: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = loop.call_later(seconds, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.perf_counter()
        for ticket in [ticket for ticket in self._open if ticket.deadline <= now]:
            self._late(ticket)
        self._at, self._timer = math.inf, None
        if self._open:
            first = min([ticket.deadline for ticket in self._open])
            first = max(first, now + _LOOK * len(self._open))
            self._look_in(first - now, first, loop)
