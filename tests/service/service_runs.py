"""Servers for tests: in a thread, or as the process that a person starts; both stop by themselves."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from fastapi import FastAPI

from service.app import create_app
from service.hub import Hub
from service.processes.server import Server, bind_socket
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0


@dataclass(frozen=True)
class Running:
    """A server on a loopback port."""

    host: str
    port: int
    app: FastAPI

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def hub(self) -> Hub:
        return self.app.state.hub


def times_open(path: Path) -> int:
    """How many descriptors of this process lead to a path; 0 where Linux does not tell."""
    found = []
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(entry.readlink())
    return found.count(path.resolve())


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """The server in a thread of this process, as `serve` runs it but for signals."""
    app = create_app(settings)
    listener = bind_socket(settings.host, settings.port)
    server = Server(app, replace(settings, drain_delay=0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield Running(*listener.getsockname()[:2], app)
    finally:
        server.drain()
        thread.join(PATIENCE)
        listener.close()
    assert not thread.is_alive()


@dataclass(frozen=True)
class Process:
    """`bnfold serve` as a process of its own."""

    child: subprocess.Popen[str]
    log: Path
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait(self) -> int:
        return self.child.wait(PATIENCE)

    def text(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def process(repository: Path, folder: Path, **environment: str) -> Iterator[Process]:
    """Start `bnfold serve` and wait until it is ready; killed at the end if it still runs."""
    log = folder / "server.log"
    with log.open("w") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "bnfold", "serve", str(repository), "--port", "0", "--device", "cpu"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        until(lambda: "serving on http" in log.read_text() or child.poll() is not None)
        assert child.poll() is None, log.read_text()
        url = log.read_text().split("serving on ")[1].split()[0]
        until(lambda: _answers(url))
        yield Process(child, log, url)
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(PATIENCE)


def until(holds: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.01)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False
