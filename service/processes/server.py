"""The process: a socket, uvicorn, and a stop that loses nothing.

SIGTERM or SIGINT: /v2/health/ready turns 503 and every response asks its client to leave the connection, while requests
are still taken for `drain_delay` seconds, so that a load balancer can turn away; then the socket closes, what was
accepted is finished within `drain_timeout`, and the process ends with 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import math
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.keys import check_exposure
from service.processes.lifecycle import Lifecycle
from service.processes.listener import bind_socket, no_address, refuse_new, write_url
from service.processes.peers import Crew
from service.settings import Settings
from service.telemetry.logs import say_where, set_up_logs
from service.tls import Certificate, check_certificate

_logger = logging.getLogger(__name__)

_QUEUE = 0.05  # seconds to accept the connections that the kernel has made already, as often as there are any
_LONGEST_QUEUE = 5.0
_GOODBYE = 5.0  # seconds for a client to take part in the end of a TLS connection
_LAST_ARRIVALS = 0.1  # seconds for requests that were on the wire when the socket closed


@dataclass(eq=False)
class Shift:
    """One run of the server in this process. announce: called once, with the URL, when it accepts requests.

    crew: its place among several workers, None for a process on its own.
    """

    settings: Settings
    announce: Callable[[str], None] | None = None
    crew: Crew | None = None
    server: Server | None = None

    @property
    def draining(self) -> bool:
        """Whether it was told to stop."""
        return self.server is not None and self.server.draining


def serve(settings: Settings, *, announce: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; returns when everything accepted is answered.

    announce: called once, with the URL, when the server accepts requests.

    Raises BnfoldError when the address cannot be had, nothing is proven, or the device does not start; with several
    workers also when one of them keeps ending early.
    """
    check_exposure(settings)
    if settings.workers > 1:
        from service.processes.supervisor import supervise

        supervise(settings, announce=announce)
        return
    set_up_logs(settings.log_format)
    serve_shift(Shift(settings, announce))


def serve_shift(shift: Shift) -> None:
    """Serve in this process. Raises BnfoldError as `serve` does."""
    settings = shift.settings
    check_certificate(settings)
    share = shift.crew is not None
    with _ending_on_sigterm(), bind_socket(settings.host, settings.port, share=share) as listener:
        app = create_app(settings, shift.crew)
        shift.server = Server(app, settings, shift.announce)
        try:
            shift.server.run(sockets=[listener])
        except OSError as problem:  # another process listened on the address in the meantime
            raise no_address(settings.host, settings.port, problem) from None
        if app.state.hub.keeper.is_busy:  # a version is being proved, which nothing can stop: nobody waits for it
            _end()
    _logger.info("stopped")


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """End the process with 0 on SIGTERM inside the block; uvicorn has its own handler in there while it serves.

    Where this handler is in force nothing is accepted. It does not raise: an exception in the midst of the import of a
    compiled module comes out as another, and the models would be refused for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are somebody else's
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(*_: object) -> None:
    logging.raiseExceptions = False  # it may have come while another line was written
    with contextlib.suppress(RuntimeError):
        _logger.info("stopped")
    os._exit(0)


class Server(uvicorn.Server):
    """uvicorn's server with a drain before the stop. `drain` may be called from a signal handler."""

    def __init__(self, app: FastAPI, settings: Settings, announce: Callable[[str], None] | None = None) -> None:
        self._certificate = Certificate.open(settings)
        super().__init__(make_config(app, settings))
        self._lifecycle: Lifecycle = app.state.hub.lifecycle
        app.state.hub.metrics.show_connections(lambda: len(self.server_state.connections))
        self._settings = settings
        self._announce = announce
        self._stop_at = math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets if self._certificate is None else [])
        if self._certificate is not None:
            self.servers += [await self._listen_with_tls(listener, self._certificate) for listener in sockets or []]
        for listener in sockets or []:
            where = write_url(listener, secure=self._settings.tls_cert is not None)
            if self._settings.workers == 1:  # several are announced by their supervisor
                say_where(self._settings, where)
            if self._announce is not None:
                self._announce(where)

    async def _listen_with_tls(self, listener: socket.socket, certificate: Certificate) -> Any:
        """As uvicorn listens, which would wait a minute for a greeting that does not come."""
        config, state = self.config, self.lifespan.state
        protocol: Any = config.http_protocol_class
        make = partial(protocol, config=config, server_state=self.server_state, app_state=state)
        return await asyncio.get_running_loop().create_server(
            make,
            sock=listener,
            ssl=certificate.context,
            ssl_handshake_timeout=self._settings.header_timeout,
            ssl_shutdown_timeout=_GOODBYE,
            backlog=config.backlog,
        )

    @property
    def draining(self) -> bool:
        """Whether it was told to stop."""
        return self._lifecycle.draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once.

        uvicorn's own handler also keeps the signal and raises it again after the stop, which would end the process with
        the signal instead of 0.
        """
        del sig, frame
        if self._lifecycle.draining:
            self.should_exit = self.force_exit = True
            self._lifecycle.force()
        else:
            self.drain()

    def drain(self) -> None:
        """Begin to stop."""
        self._lifecycle.drain()
        self._stop_at = time.monotonic() + self._settings.drain_delay

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to stop."""
        if self._certificate is not None:
            self._certificate.look()
        return await super().on_tick(counter) or time.monotonic() >= self._stop_at

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, read what has arrived, and only then let uvicorn close idle connections and wait."""
        self._lifecycle.drain()
        if not self.force_exit:
            for listener in sockets or []:
                refuse_new(listener)
            await _until_empty(sockets or [])
        for server in self.servers:
            server.close()
        if not self.force_exit:
            await asyncio.sleep(_LAST_ARRIVALS)
        self._lifecycle.close()
        await super().shutdown(sockets)


async def _until_empty(listeners: Sequence[socket.socket]) -> None:
    """Wait until every connection in the queue of a listening socket is accepted, however slow the machine."""
    end = time.monotonic() + _LONGEST_QUEUE
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            selector.register(listener, selectors.EVENT_READ)
        await asyncio.sleep(_QUEUE)
        while selector.select(0) and time.monotonic() < end:
            await asyncio.sleep(_QUEUE)


def make_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the app: uvloop and httptools where they are installed, no access log."""
    http: Any = "h11"
    if importlib.util.find_spec("httptools") is not None:
        from service.http.bounds import Bounds
        from service.http.express import make_protocol

        http = make_protocol(Bounds.of(settings, app.state.hub.metrics.count_stray), app.state.hub)
    else:
        _logger.warning("httptools is not installed: clients that are slow with the head of a request are waited for")
    return uvicorn.Config(
        app,
        loop="auto",
        http=http,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        workers=1,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout),
    )
