"""Whether the event loop of a worker turns: the worker beats, and its supervisor counts.

A worker that hangs (a native call that never returns, a stopped process) ends by nothing of its own. Only beats are
counted, and no time of one process is compared with that of another: so a machine that slept, or a supervisor that was
held up itself, takes nobody for hung.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

HANGS = "hangs"  # the block of the supervisor: after the first cell, how often each worker was killed for it

_LOOKS = 5  # looks in a row without a beat
_BEATS = 4  # from one look to the next
_SLOWEST = 1.0  # seconds from one beat to the next


class Heart:
    """Calls `beat` on the event loop for as long as it turns. patience: seconds, as its Pulse has them.

    every: seconds from one beat to the next.
    """

    def __init__(self, patience: float, beat: Callable[[], None]) -> None:
        self.every = min(patience / (_LOOKS * _BEATS), _SLOWEST)
        self._beat = beat

    def start(self) -> None:
        """Begin; called on the loop."""
        self._beat()
        asyncio.get_running_loop().call_later(self.every, self.start)


class Pulse:
    """The beats of one worker as its supervisor hears them. patience: seconds without one until it is taken to hang.

    last: when the last look found a beat, on the monotonic clock; -inf before.
    """

    def __init__(self, patience: float) -> None:
        self.interval = patience / _LOOKS
        self.last = -math.inf
        self._heard = True
        self._missed = 0
        self._looked = -math.inf

    def hear(self) -> None:
        """A beat has come."""
        self._heard = True

    def stopped(self, now: float) -> bool:
        """Look, once every `interval` seconds: whether the last looks, one after another, all found no beat.

        After a look that came late the count begins anew: what held it up may have held the worker up too.
        """
        late = now - self._looked > 2 * self.interval
        self._looked = now
        if self._heard:
            self.last = now
        self._missed = 0 if self._heard or late else self._missed + 1
        self._heard = False
        return self._missed >= _LOOKS


def is_traced(process: int) -> bool:
    """Whether a debugger holds a process, which then stands still for as long as somebody looks at it. Linux."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "\nTracerPid:\t" in status and "\nTracerPid:\t0\n" not in status
