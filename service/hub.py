"""What every endpoint needs: the models, the queue before them, the caps, the metrics."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import Receive

from service.engine import Engine
from service.errors import Busy, Disconnected, Fault, Forbidden, Unauthorized
from service.http.body import Budget
from service.keys import Keys, RawHeaders, Role
from service.processes.lifecycle import Lifecycle
from service.processes.peers import Peers
from service.protocol.requests import Limits
from service.protocol.tensors import Array
from service.queueing.backlog import Outputs
from service.queueing.batcher import Batcher
from service.repository import Repository
from service.repository.keeper import Keeper
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.watch import CURRENT, Watch


@dataclass(frozen=True, eq=False)
class Hub:
    """One server's parts. pool: threads for pictures and compressed bodies. keeper: changes the repository.

    watch: the access log and the traces, None when both are off.
    """

    settings: Settings
    limits: Limits
    repository: Repository
    batcher: Batcher
    budget: Budget
    pool: Executor
    metrics: Metrics
    lifecycle: Lifecycle
    keys: Keys
    peers: Peers
    keeper: Keeper
    watch: Watch | None = None

    def check_open(self) -> None:
        """Raise Busy once the server takes no further request."""
        if self.lifecycle.closed:
            raise Busy("the server is stopping; try again elsewhere")

    def check_key(self, headers: RawHeaders, role: Role) -> None:
        """As `Keys.check`; whoever is refused is counted, so that somebody who tries keys is seen."""
        try:
            self.keys.check(headers, role)
        except (Unauthorized, Forbidden) as fault:
            self.metrics.count_stray(fault.reason)
            raise

    @contextmanager
    def counting(self) -> Iterator[Count]:
        """Count what becomes of one request to a model; faults pass through."""
        count = Count(self.metrics, time.perf_counter())
        try:
            yield count
        except Fault as fault:
            count.fail(fault.reason)
            raise
        except Disconnected:
            count.fail("client_gone")
            raise
        except Exception:
            count.fail("internal")
            raise
        else:
            count.succeed()
        finally:
            count.release()

    async def infer(
        self,
        engine: Engine,
        inputs: Mapping[str, Array],
        rows: int,
        timeout: float | None,
        receive: Receive | None,
        count: Count,
        priority: int = 0,
    ) -> Outputs:
        """Run a request through the queue; see `Batcher.infer`. timeout: at most the server's own.

        receive: where a client that leaves is noticed; None where its leaving cancels the caller's task.
        """
        limit = self.settings.request_timeout
        account = CURRENT.get() if self.watch is not None else None
        began = 0 if account is None else time.time_ns()
        outputs, count.queued = await self.batcher.infer(
            engine,
            inputs,
            rows,
            timeout=limit if timeout is None else min(timeout, limit),
            priority=priority,
            gone=None if receive is None else _until_gone(receive),
        )
        if account is not None:
            account.note_run(engine.name, engine.version, began, count.queued)
        return outputs


class Count:
    """What the metrics will say of one request. engine: None until it is known to be for a model that is here."""

    def __init__(self, metrics: Metrics, started: float) -> None:
        self.engine: Engine | None = None
        self.queued = 0.0
        self._metrics = metrics
        self._started = started

    def use(self, engine: Engine) -> Engine:
        """Hold a version until the end of the request: one that leaves service is closed when nobody holds it."""
        engine.take()
        self.engine = engine
        return engine

    def release(self) -> None:
        """The end of `use`."""
        if self.engine is not None:
            self.engine.release()

    def succeed(self) -> None:
        """It was answered."""
        if self.engine is not None:
            self.engine.meter.count_answer(time.perf_counter() - self._started, self.queued)

    def fail(self, reason: str) -> None:
        """It was not."""
        seconds = time.perf_counter() - self._started
        if self.engine is not None:
            self.engine.meter.count_failure(reason, seconds)
        else:
            self._metrics.count_stray(reason, seconds)


def _until_gone(receive: Receive) -> Callable[[], Awaitable[None]]:
    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    return gone
