"""Listening for gRPC, and stopping without losing what was accepted.

Nothing here needs grpcio until a port is asked for.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import os
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError
from service.http.bounds import share_files
from service.hub import Hub
from service.processes.listener import bind_socket, no_address
from service.settings import Settings

_logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.1  # seconds
_MOST_CALLS = 1024  # at a time on one connection


def check_grpc(settings: Settings) -> None:
    """Before models are loaded: whether gRPC can be had as it is asked for.

    Raises BnfoldError when its packages are missing or do not fit together, or the address is taken.
    """
    if settings.grpc_port is None:
        return
    # Its library writes lines of its own form to stderr, also of each greeting that fails, which a stranger can send.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        importlib.import_module("service.rpc.service")
    except ImportError as problem:
        raise BnfoldError(
            f"--grpc-port needs the extra grpc ({problem}); expected grpcio and tritonclient; "
            "install it with `pip install 'bnfold[grpc]'`, or leave --grpc-port out"
        ) from None
    except Exception as problem:  # grpcio and protobuf raise their own kinds when generated code is of another release
        raise BnfoldError(
            f"the packages of the extra grpc do not fit together ({problem!s:.300}); expected releases that do; "
            "install them again with `pip install -U 'bnfold[grpc]'`"
        ) from None
    if settings.workers == 1:
        bind_socket(settings.host, settings.grpc_port).close()


@asynccontextmanager
async def grpc_door(hub: Hub) -> AsyncGenerator[int | None, None]:
    """Serve gRPC inside the block where the settings ask for it; gives the port.

    At the end no call is taken any more, streams end after what they have read, and calls that were accepted have
    `drain_timeout` to be answered. Raises BnfoldError when the address cannot be had.
    """
    if hub.settings.grpc_port is None:
        yield None
        return
    closing = asyncio.Event()
    server, port = _build(hub, closing)
    await server.start()
    _logger.info("gRPC on %s", _address(hub.settings.host, port))
    try:
        yield port
    finally:
        closing.set()
        await _stop(server, hub)


async def _stop(server: Any, hub: Hub) -> None:
    """Wait for what was accepted, unless a second signal says not to; that may cancel the server's own tasks."""
    stopping = asyncio.ensure_future(server.stop(0 if hub.lifecycle.forced else hub.settings.drain_timeout))
    while not stopping.done() and not hub.lifecycle.forced:
        await asyncio.wait((stopping,), timeout=_LOOK_EVERY)
    if hub.lifecycle.forced:
        with suppress(asyncio.CancelledError):
            await server.stop(0)
            await stopping
    else:
        await stopping


def _build(hub: Hub, closing: asyncio.Event) -> tuple[Any, int]:
    import grpc

    from service.rpc.service import Service

    settings, most = hub.settings, share_files(hub.settings)
    server = grpc.aio.server(
        maximum_concurrent_rpcs=most,  # each may bring a message, which is here in whole before its size is known
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", _MOST_CALLS),
            ("grpc.max_allowed_incoming_connections", most),
            ("grpc.server_handshake_timeout_ms", _milliseconds(settings.header_timeout)),
            ("grpc.max_connection_idle_ms", _milliseconds(settings.keep_alive_timeout)),
            ("grpc.keepalive_time_ms", _milliseconds(settings.keep_alive_timeout)),
            ("grpc.keepalive_timeout_ms", _milliseconds(settings.write_timeout)),
            ("grpc.so_reuseport", int(settings.workers > 1)),
        ],
    )
    server.add_generic_rpc_handlers(tuple(Service(hub, closing).handlers()))
    address = _address(settings.host, settings.grpc_port or 0)
    try:
        port = _listen(server, address, settings)
    except RuntimeError as problem:
        raise no_address(settings.host, settings.grpc_port or 0, OSError(str(problem))) from None
    return server, port


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _listen(server: Any, address: str, settings: Settings) -> int:
    if settings.tls_cert is None or settings.tls_key is None:
        return int(server.add_insecure_port(address))
    import grpc

    pair = Pair(settings.tls_cert, settings.tls_key)
    first = pair.read()
    return int(server.add_secure_port(address, grpc.dynamic_ssl_server_credentials(first, pair.renewed)))


class Pair:
    """A certificate and its key for gRPC, which asks for them before each handshake, in threads of its own."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._files = (key, cert)
        self._seen: object = None

    def read(self) -> Any:
        """What the files say now. Raises OSError, ssl.SSLError for half a renewal."""
        import grpc

        self._seen = self._stamp()
        key, cert = (file.read_bytes() for file in self._files)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._files[1], self._files[0])
        return grpc.ssl_server_certificate_configuration([(key, cert)])

    def renewed(self) -> Any:
        """The new pair once the files have changed, None to go on with the one in use. The HTTP door tells the log."""
        try:
            return None if self._stamp() == self._seen else self.read()
        except OSError:  # ssl.SSLError is one
            return None

    def _stamp(self) -> object:
        return [(found.st_ino, found.st_size, found.st_mtime_ns) for found in map(os.stat, self._files)]


def _address(host: str, port: int) -> str:
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"
