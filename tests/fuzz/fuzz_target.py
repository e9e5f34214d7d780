"""The server in this process, from the bytes that a connection reads to the bytes that it writes, without a socket.

Everything between is the real one: the parser, the short way and the way through ASGI, the queue, the threads, ONNX
Runtime on small models; for gRPC everything behind its own parser of frames.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fuzz_seeds import GRPC, MOST_BYTES

PATIENCE = 20.0  # seconds for one input: beyond them it is taken to hang
# 206, 304, 416: files of /docs. 100: Expect. 505: HTTP/0.9.
_ALLOWED = {100, 200, 206, 304, 400, 401, 403, 404, 405, 408, 413, 414, 415, 416, 431, 501, 503, 505}
_BROKEN = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}


class Violation(Exception):
    """What the server must never do."""


class Target:
    """One server. statuses: how often each was answered. slowest: the most seconds that one took."""

    def __init__(self, app: Any, config: Any, state: Any) -> None:
        from service.rpc.service import Service

        self.statuses: collections.Counter[str] = collections.Counter()
        self.slowest = 0.0
        self.slowest_input = b""
        self.durations: collections.Counter[int] = collections.Counter()  # by the number of bits of the microseconds
        self._app = app
        self._config = config
        self._state = state
        self._handlers = list(Service(app.state.hub, asyncio.Event()).handlers())

    async def take(self, data: bytes) -> None:
        """One input. Raises Violation."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE):
                await (self._call(data) if data.startswith(GRPC) else self._connect(data))
        except TimeoutError:
            raise Violation(f"no end after {PATIENCE} seconds") from None
        seconds = time.perf_counter() - started
        if seconds > self.slowest:
            self.slowest, self.slowest_input = seconds, data
        self.durations[int(seconds * 1e6).bit_length()] += 1
        hub = self._app.state.hub
        if hub.budget._used:
            raise Violation(f"{hub.budget._used} bytes of the budget were not given back")

    async def _connect(self, data: bytes) -> None:
        wire = Wire()
        protocol = self._config.http_protocol_class(config=self._config, server_state=self._state, app_state={})
        protocol.connection_made(wire)
        cut = sum(data) % (2 * len(data) + 1)  # every second input comes in two pieces
        for piece in (data[:cut], data[cut:]):
            if piece and not wire.closed:
                protocol.data_received(piece)
        while not wire.closed and (cycle := protocol.cycle) is not None:
            if cycle.response_complete or cycle.more_body:  # answered, or a body that will not come
                break
            wire.written.clear()
            await wire.written.wait()
        protocol.connection_lost(None)
        while self._state.tasks:
            await asyncio.wait(list(self._state.tasks))
        self._check(data, bytes(wire.sent))

    def _check(self, data: bytes, sent: bytes) -> None:
        if not sent:
            self.statuses["none"] += 1
        while sent:
            head, end, sent = sent.partition(b"\r\n\r\n")
            line, *lines = head.split(b"\r\n")
            version, _, rest = line.partition(b" ")
            status = rest[:3]
            if version != b"HTTP/1.1" or not end or not status.isdigit():
                raise Violation(f"no HTTP was answered: {head[:80]!r}")
            self.statuses[status.decode()] += 1
            if int(status) not in _ALLOWED:
                raise Violation(f"answered {status.decode()}: {sent[:200]!r}")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
            length = int(headers.get(b"content-length", b"0"))
            if b"HEAD " in data and (not sent or sent.startswith(b"HTTP/1.1 ")):
                continue  # the answer to HEAD ends with its head
            body, sent = sent[:length], sent[length:]
            if len(body) < length:
                raise Violation(f"{len(body)} of {length} bytes of an answer of status {status.decode()}")
            if status[:1] in (b"4", b"5"):
                self._check_error(status, headers, body)

    def _check_error(self, status: bytes, headers: dict[bytes, bytes], body: bytes) -> None:
        document = json.loads(body)
        sentence = document.get("error")
        if not isinstance(sentence, str) or not sentence or "Traceback" in sentence or "\n" in sentence:
            raise Violation(f"an error of status {status.decode()} is {body[:200]!r}")
        if headers.get(b"content-type") != b"application/json":
            raise Violation(f"an error of status {status.decode()} is no JSON by its headers")
        if status == b"503" and b"retry-after" not in headers:
            raise Violation("503 without Retry-After")

    async def _call(self, data: bytes) -> None:
        """A gRPC method with the bytes of its message."""
        import grpc

        name, _, message = data[len(GRPC) :].partition(b"\n")
        path = f"/inference.GRPCInferenceService/{name.decode('latin-1')}"
        handler = next((found for each in self._handlers if (found := each.service(_Details(path)))), None)
        if handler is None or handler.stream_unary is None or len(message) > MOST_BYTES:
            self.statuses["gRPC none"] += 1
            return
        context = _Context()
        code = grpc.StatusCode.OK
        try:
            handler.response_serializer(await handler.stream_unary(_once(message), context))
        except _Aborted as problem:
            (code, sentence) = problem.args
            if code.name in _BROKEN or not sentence or "Traceback" in sentence:
                raise Violation(f"gRPC {name!r} ended with {code.name}: {sentence[:200]}") from None
        self.statuses[f"gRPC {code.name}"] += 1


class Wire(asyncio.Transport):
    """A transport of which the other side reads at once. written: set whenever something was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closed = False
        self.written = asyncio.Event()

    def write(self, data: Any) -> None:
        self.sent += data
        self.written.set()

    def close(self) -> None:
        self.closed = True
        self.written.set()

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_protocol(self, protocol: Any) -> None:
        del protocol


async def _once(message: bytes) -> AsyncIterator[bytes]:
    yield message


class _Details:
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class _Aborted(Exception):
    """The end of a call with a code and a sentence."""


class _Context:
    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: Any) -> None:
        del metadata

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        del trailing_metadata
        raise _Aborted(code, details)


@contextlib.asynccontextmanager
async def open_target(repository: Path) -> AsyncIterator[Target]:
    """A server on a repository, with small bounds so that small inputs go beyond them."""
    from uvicorn.server import ServerState

    from service.app import create_app
    from service.processes.server import make_config
    from service.settings import Settings

    settings = Settings(
        repository=repository, device="cpu", port=0, threads=1, max_request_rows=64, max_queue_rows=64,
        max_body_bytes=MOST_BYTES, max_json_bytes=MOST_BYTES, max_json_values=2**15, max_memory_bytes=2**22,
    )  # fmt: skip
    app = create_app(settings)
    config = make_config(app, settings)
    config.load()
    async with app.router.lifespan_context(app):
        yield Target(app, config, ServerState())
