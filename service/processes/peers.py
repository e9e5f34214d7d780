"""The workers of one server, and how they know of one another: a socket each in a folder that only they can enter.

A worker is asked in one line of JSON and answers in one: {"ask": "state"}. One that does not answer in time is taken
to be away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from service.processes.lifecycle import Lifecycle

if TYPE_CHECKING:
    from service.repository import Repository
    from service.telemetry.metrics import Metrics

_logger = logging.getLogger(__name__)
_PATIENCE = 1.0  # seconds; a worker whose loop is busy for longer is of no use to a probe
_GLANCE = 0.2  # seconds for one that did not answer the last time: a probe has a second itself
_MOMENT = 0.1  # seconds
_LONGEST = 4 * 2**20

State = Mapping[str, Any]


@dataclass(frozen=True)
class Crew:
    """What one worker knows of its server. folder: private to the workers. worker: its number, below `workers`."""

    folder: Path
    worker: int
    workers: int

    @property
    def counts(self) -> Path:
        """The folder of what all workers counted."""
        return self.folder / "counts"

    def socket(self, worker: int) -> str:
        """Where a worker is asked."""
        return str(self.folder / f"worker-{worker}.sock")


class Peers:
    """The other workers. crew: None for a process on its own. tell: this worker's state, JSON-ready."""

    def __init__(self, crew: Crew | None, tell: Callable[[], State]) -> None:
        self._crew = crew
        self._tell = tell
        self._server: asyncio.Server | None = None
        self._asked: asyncio.Future[list[State | None]] | None = None
        self._until = 0.0
        self._away: set[int] = set()

    async def start(self) -> None:
        """Answer the others."""
        if self._crew is not None:
            path = Path(self._crew.socket(self._crew.worker))
            path.unlink(missing_ok=True)  # of the worker before this one
            self._server = await asyncio.start_unix_server(self._answer, path, limit=_LONGEST)

    async def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()

    async def others(self) -> list[State]:
        """The states of the other workers that answer, a moment old at most: strangers may ask often."""
        now = time.monotonic()
        if self._crew is None:
            return []
        if self._asked is None or (self._asked.done() and now > self._until):
            self._asked = asyncio.ensure_future(self._ask_all(self._crew))
            self._until = now + _MOMENT
        found = await asyncio.shield(self._asked)
        return [state for state in found if state is not None]

    async def all(self) -> list[State]:
        """Every worker by its number; of one that does not answer only that it is not ready. Empty on its own."""
        if self._crew is None:
            return []
        found = {state["worker"]: state for state in [self._tell(), *await self.others()]}
        return [found.get(worker, {"worker": worker, "ready": False}) for worker in range(self._crew.workers)]

    async def _ask_all(self, crew: Crew) -> list[State | None]:
        others = [worker for worker in range(crew.workers) if worker != crew.worker]
        waits = [_GLANCE if worker in self._away else _PATIENCE for worker in others]
        found = await asyncio.gather(*map(_ask, map(crew.socket, others), waits))
        self._away = {worker for worker, state in zip(others, found, strict=True) if state is None}
        return found

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                asked = await reader.readline()
                if asked == b'{"ask":"state"}\n':
                    writer.write(orjson.dumps(self._tell()) + b"\n")
                    await writer.drain()
        except (OSError, TimeoutError, ValueError) as problem:
            _logger.debug("another worker left while it was answered: %r", problem)
        finally:
            writer.close()


def describe_worker(
    crew: Crew | None, repository: Repository, metrics: Metrics, lifecycle: Lifecycle
) -> dict[str, Any]:
    """What a worker tells the others of itself, JSON-ready."""
    return {
        "worker": 0 if crew is None else crew.worker,
        "ready": repository.is_ready and not lifecycle.draining,
        "draining": lifecycle.draining,
        "models": [entry.to_dict() for entry in repository.entries.values()],
        "gauges": metrics.gauges(),
    }


async def describe_crew(peers: Peers) -> dict[str, Any]:
    """The workers for the readiness page, and what each has loaded; nothing for a process on its own."""
    states = await peers.all()
    if not states:
        return {}
    return {"workers": [{name: value for name, value in state.items() if name != "gauges"} for state in states]}


async def _ask(path: str, patience: float) -> State | None:
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST)
            writer.write(b'{"ask":"state"}\n')
            found: State = orjson.loads(await reader.readline())
            return found
    except (OSError, TimeoutError, ValueError):  # away, starting, or busy
        return None
    finally:
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
