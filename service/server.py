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
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from bnfold.errors import BnfoldError
from service.app import create_app
from service.lifecycle import Lifecycle
from service.settings import Settings

_logger = logging.getLogger(__name__)

_LAST_ARRIVALS = 0.1  # seconds for requests that were on the wire when the socket closed


def serve(settings: Settings, *, announce: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; returns when everything accepted is answered.

    announce: called once, with the URL, when the server accepts requests.

    Raises BnfoldError when the address cannot be had, nothing is proven, or the device does not start.
    """
    _log_to_stderr()
    with _ending_on_sigterm(), contextlib.closing(bind_socket(settings.host, settings.port)) as listener:
        server = Server(create_app(settings), settings, announce)
        try:
            server.run(sockets=[listener])
        except OSError as problem:  # another process listened on the address in the meantime
            raise _no_address(settings.host, settings.port, problem) from None
    _logger.info("stopped")


class _Stop(BaseException):
    """SIGTERM while uvicorn does not listen to signals: models are loading."""


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Leave the block in peace on SIGTERM; uvicorn has its own handler in there while it runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are somebody else's
        return

    def stop(*_: object) -> None:
        raise _Stop

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with contextlib.suppress(_Stop):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Server(uvicorn.Server):
    """uvicorn's server with a drain before the stop. `drain` may be called from a signal handler."""

    def __init__(self, app: FastAPI, settings: Settings, announce: Callable[[str], None] | None = None) -> None:
        super().__init__(make_config(app, settings))
        self._lifecycle: Lifecycle = app.state.hub.lifecycle
        self._settings = settings
        self._announce = announce
        self._stop_at = math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            if not self._settings.is_loopback:
                _logger.warning("%s can be reached from other machines, and asks nobody for a key", where)
            _logger.info("serving on %s (docs: %s/docs); stop with Ctrl-C or SIGTERM", where, where)
            if self._announce is not None:
                self._announce(where)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once.

        uvicorn's own handler also keeps the signal and raises it again after the stop, which would end the process with
        the signal instead of 0.
        """
        del sig, frame
        if self._lifecycle.draining:
            self.should_exit = self.force_exit = True
        else:
            self.drain()

    def drain(self) -> None:
        """Begin to stop."""
        self._lifecycle.drain()
        self._stop_at = time.monotonic() + self._settings.drain_delay

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to stop."""
        return await super().on_tick(counter) or time.monotonic() >= self._stop_at

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, read what has arrived, and only then let uvicorn close idle connections and wait."""
        self._lifecycle.drain()
        for server in self.servers:
            server.close()
        if not self.force_exit:
            await asyncio.sleep(_LAST_ARRIVALS)
        self._lifecycle.close()
        await super().shutdown(sockets)


def make_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the app: uvloop and httptools where they are installed, no access log."""
    http: Any = "h11"
    if importlib.util.find_spec("httptools") is not None:
        from service.connection import make_protocol

        http = make_protocol(settings.header_timeout)
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


def bind_socket(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: until the models are proven, clients are refused, not kept waiting.

    Raises BnfoldError when the address is taken, forbidden or unknown.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as problem:
        raise _no_address(host, port, problem) from None
    try:
        if sys.platform != "win32":  # there it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as problem:
        listener.close()
        raise _no_address(host, port, problem) from None
    return listener


def _no_address(host: str, port: int, problem: OSError) -> BnfoldError:
    return BnfoldError(
        f"the server cannot listen on {host}:{port} ({problem.strerror or problem}); expected a free address of this "
        "machine; stop what uses it, or give another --host or --port"
    )


def _log_to_stderr() -> None:
    """Show the log where nobody has set up logging; uvicorn's own lines from warnings on."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(
        logging.ERROR
    )  # it warns of every form that a stranger sends damaged
