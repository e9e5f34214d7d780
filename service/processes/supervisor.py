"""Several workers on one address: starts them, starts again those that end, and stops them all.

Each worker is a process with models, threads and a listening socket of its own (SO_REUSEPORT: the kernel deals the
connections out). This process only holds the address; it imports no model code, so little can happen to it. A worker
that ends is started again, later each time it ends early; when one keeps ending early, the server stops and says why.
One whose event loop does not turn any more is killed, and so ends.
SIGTERM or SIGINT: every worker drains. A second one: they end at once. A worker sees on its stdin when this process is
killed, and stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError
from service.processes.heartbeat import HANGS, Pulse, is_traced
from service.processes.listener import reserve_socket, write_url
from service.processes.peers import Crew
from service.processes.worker import write_settings
from service.settings import Settings, count_cores
from service.telemetry.cells import RESTARTS, Shelf
from service.telemetry.logs import say_where, set_up_logs

_logger = logging.getLogger(__name__)

_PARENT = -1
_EARLY = 10.0  # seconds: a worker that ends sooner after it was ready ends early
_MOST_EARLY = 5
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 10.0  # seconds before a worker is started again
_GRACE = 10.0  # seconds beyond its own limits that a worker may take to stop
_AT_ONCE = 5.0  # the same after a second signal


def supervise(settings: Settings, *, announce: Callable[[str], None] | None = None) -> None:
    """Serve with several workers until SIGTERM or SIGINT; announce: called once, with the URL, when all are ready.

    Raises BnfoldError when the address cannot be had, a worker cannot start, or one keeps ending early.
    """
    set_up_logs(settings.log_format)
    if sys.platform == "win32":
        raise BnfoldError(
            f"the server setting workers is {settings.workers}, but on Windows processes cannot share a port; expected "
            "1; leave it out"
        )
    with reserve_socket(settings.host, settings.port) as listener, _private_folder() as folder:
        where = write_url(listener, secure=settings.tls_cert is not None)
        settings = replace(settings, port=int(listener.getsockname()[1]), state_dir=settings.state_dir or folder)
        with contextlib.ExitStack() as stack:
            if settings.grpc_port is not None:
                grpc = stack.enter_context(reserve_socket(settings.host, settings.grpc_port))
                settings = replace(settings, grpc_port=int(grpc.getsockname()[1]))

            def ready() -> None:
                say_where(settings, where)
                if announce is not None:
                    announce(where)

            asyncio.run(Supervisor(settings, folder, ready).run())
    _logger.info("stopped")


@dataclass(eq=False)
class Worker:
    """One process. ready: when it was. failure: why it could not start, in its own words."""

    number: int
    process: asyncio.subprocess.Process
    pulse: Pulse
    ready: float | None = None
    failure: str = ""
    hung: bool = False

    @property
    def ended_early(self) -> bool:
        """Whether it did not live long enough to be taken for healthy."""
        end = self.pulse.last if self.hung else time.monotonic()
        return self.ready is None or end - self.ready < _EARLY

    def describe_end(self) -> str:
        """How it ended."""
        code = self.process.returncode or 0
        name = next((f" ({each.name})" for each in signal.Signals if each == -code), "")
        how = f"by signal {-code}{name}" if code < 0 else f"with exit code {code}"
        return f"{self} ended {how}"

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.process.pid})"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Supervisor:
    """Keeps the workers running. ready: called once, when all of them are."""

    def __init__(self, settings: Settings, folder: Path, ready: Callable[[], None]) -> None:
        self._settings = settings
        self._folder = folder
        self._announce = ready
        self._ready: set[int] = set()
        self._workers: dict[int, Worker] = {}
        self._stop = asyncio.Event()
        self._killed = False
        shelf = Shelf(Crew(folder, _PARENT, settings.workers).counts, _PARENT)
        self._restarts, self._hangs = (shelf.open(name, 1 + settings.workers) for name in (RESTARTS, HANGS))

    async def run(self) -> None:
        """Until all workers have ended. Raises BnfoldError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        keepers = [asyncio.create_task(self._keep(number)) for number in range(self._settings.workers)]
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(*keepers)
        except Exception:
            self._begin_stop()
            await asyncio.gather(*keepers, return_exceptions=True)
            raise
        finally:
            watch.cancel()
        if self._killed:
            raise BnfoldError(
                "a worker did not stop within drain_delay and drain_timeout and was killed, with what it had accepted; "
                "expected it to finish in that time; raise drain_timeout"
            )

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._end(_AT_ONCE)
        else:
            _logger.info("stopping: the workers finish what they have accepted")
            self._begin_stop()

    def _begin_stop(self) -> None:
        self._stop.set()
        self._end(self._settings.drain_delay + self._settings.drain_timeout + _GRACE)

    def _end(self, within: float) -> None:
        for worker in self._workers.values():
            worker.signal(signal.SIGTERM)
        asyncio.get_running_loop().call_later(within, self._kill)

    def _kill(self) -> None:
        for worker in self._workers.values():
            if worker.process.returncode is None:
                _logger.error("worker %d does not stop; it is killed", worker.number)
                self._killed = True
                worker.signal(signal.SIGKILL)

    async def _watch(self) -> None:
        """Kill workers that hang, until the stop, which has a limit of its own. One that loads does not beat yet."""
        patience = self._settings.hang_timeout
        interval = Pulse(patience).interval
        while patience:
            await asyncio.sleep(interval)
            if self._stop.is_set():
                return
            for worker in self._workers.values():
                if worker.ready is None or worker.process.returncode is not None or worker.hung:
                    continue
                if is_traced(worker.process.pid):
                    worker.pulse.hear()
                if worker.pulse.stopped(time.monotonic()):
                    worker.hung = True
                    self._hangs[1 + worker.number] += 1.0
                    _logger.error("%s hangs: its event loop has not turned for %g s; it is killed", worker, patience)
                    worker.signal(signal.SIGKILL)

    async def _keep(self, number: int) -> None:
        early = 0
        while not self._stop.is_set():
            worker = await self._start(number)
            await self._follow(worker)
            if self._stop.is_set():
                return
            if worker.failure and number not in self._ready:  # it is the server that cannot start
                raise BnfoldError(worker.failure)
            early = early + 1 if worker.ended_early else 0
            if early >= _MOST_EARLY:
                raise BnfoldError(
                    f"{worker.describe_end()}, {early} times in a row within {_EARLY:g} s of its start; the server "
                    "stops; its log says what went before"
                )
            delay = min(_FIRST_DELAY * 2**early, _LONGEST_DELAY)
            why = f" ({worker.failure})" if worker.failure else ""
            _logger.error("%s%s; it is started again in %.1f s", worker.describe_end(), why, delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)
            self._restarts[1 + number] += 1.0

    async def _start(self, number: int) -> Worker:
        settings = replace(self._settings, threads=_share_threads(self._settings, number))
        process = await _create_process()
        worker = self._workers[number] = Worker(number, process, Pulse(self._settings.hang_timeout))
        task = {"settings": write_settings(settings), "folder": str(self._folder), "worker": number}
        line = json.dumps({**task, "workers": self._settings.workers}) + "\n"
        if process.stdin is not None:
            process.stdin.write(line.encode("utf-8"))
        if self._stop.is_set():  # the signal came while the process was made
            worker.signal(signal.SIGTERM)
        return worker

    async def _follow(self, worker: Worker) -> None:
        """Hear what a worker tells until it has ended."""
        out = worker.process.stdout
        while out is not None and (line := await out.readline()):
            told: dict[str, Any] = json.loads(line)
            worker.failure = told.get("failed", worker.failure)
            worker.pulse.hear()
            if told.get("ready"):
                worker.ready = time.monotonic()
                self._note_ready(worker)
        await worker.process.wait()

    def _note_ready(self, worker: Worker) -> None:
        _logger.info("%s is ready", worker)
        before = len(self._ready)
        self._ready.add(worker.number)
        if before < len(self._ready) == self._settings.workers:
            self._announce()


async def _create_process() -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the folder that the server was started in has no modules for it
            "-m",
            "service.processes.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is for this process, which tells the workers
        )
    except OSError as problem:
        raise BnfoldError(
            f"a worker process cannot be started ({problem.strerror or problem}); expected room for another process; "
            "free some, or give fewer --workers"
        ) from None


def _share_threads(settings: Settings, number: int) -> int:
    """Threads of one worker: the cores are shared out, and each worker has one at least."""
    each, left = divmod(count_cores(), settings.workers)
    return settings.threads or max(1, each + (number < left))


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder that only this user can enter, with a short path, as sockets need it; gone at the end."""
    try:
        folder = tempfile.mkdtemp(prefix="bnfold-")
    except OSError as problem:
        raise BnfoldError(
            f"there is no folder for temporary files ({problem.strerror or problem}), which the workers need to reach "
            "each other; expected one that can be written to; name it in TMPDIR"
        ) from None
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
