"""Request bodies: read whole, decompressed, under caps in size, in time, and in memory over all requests."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable
from concurrent.futures import Executor
from types import TracebackType

from starlette.types import Receive, Scope

from service.errors import BadEncoding, BadRequest, Busy, Disconnected, SlowClient, TooLarge
from service.settings import Settings

_SLOWEST = 64 * 2**10  # bytes a second that buy a sender more time, so that a large body on a slow line gets through
_GZIP = 31  # zlib's window bits: 15, plus 16 for a gzip header
_ZLIB = 15  # "deflate" in HTTP means the zlib format (RFC 9110, 8.4.1.2)
_WORTH_A_THREAD = 16 * 2**10  # deflate packs at most 1032:1, so less than this is no more than a moment's work


class Budget:
    """The memory that all request bodies in flight may hold together. Used on the event loop alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    def lease(self) -> Lease:
        """A share for one request, given back at the end of its `with` block."""
        return Lease(self)

    def take(self, count: int) -> None:
        """Raise Busy rather than go over the limit."""
        if self._used + count > self._limit:
            raise Busy("the server holds as many request bodies as it may; try again")
        self._used += count

    def give_back(self, count: int) -> None:
        """The end of a lease."""
        self._used -= count


class Lease:
    """What one request holds of the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held = 0

    def take(self, count: int) -> None:
        """Hold more. Raises Busy."""
        self._budget.take(count)
        self._held += count

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.give_back(self._held)
        self._held = 0


async def read_body(scope: Scope, receive: Receive, lease: Lease, settings: Settings, pool: Executor | None) -> bytes:
    """The body of a request, decompressed; pool: where what takes long is done.

    Raises TooLarge, SlowClient, BadEncoding, BadRequest (damaged compression), Busy (memory), Disconnected.
    """
    encoding = _encoding(scope["headers"])
    declared = find_header(scope["headers"], b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > settings.max_body_bytes:
        raise _too_large(settings.max_body_bytes)
    body = await _receive(receive, lease, settings)
    if encoding is None:
        return body
    if len(body) > _WORTH_A_THREAD:
        loop = asyncio.get_running_loop()
        plain = await loop.run_in_executor(pool, _decompress, body, encoding, settings.max_body_bytes)
    else:
        plain = _decompress(body, encoding, settings.max_body_bytes)
    lease.take(len(plain))
    return plain


def find_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of a header, None when it is not there. Raises BadRequest when it stands twice with two values."""
    found: bytes | None = None
    for key, value in headers:
        if key == name:
            if found is not None and value != found:
                raise BadRequest(f"the header {name.decode('ascii')} stands twice with two values; send it once")
            found = value
    return found


async def _receive(receive: Receive, lease: Lease, settings: Settings) -> bytes:
    chunks: list[bytes] = []
    size = 0
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        async with asyncio.timeout(settings.body_timeout) as clock:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > settings.max_body_bytes:
                    raise _too_large(settings.max_body_bytes)
                lease.take(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
                clock.reschedule(started + settings.body_timeout + size / _SLOWEST)
    except TimeoutError:
        raise SlowClient(f"the body did not arrive in time ({size} bytes so far); send it faster") from None


def _encoding(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    value = find_header(headers, b"content-encoding")
    name = b"identity" if value is None else value.strip().lower()
    if name in (b"identity", b""):
        return None
    if name == b"gzip":
        return _GZIP
    if name == b"deflate":
        return _ZLIB
    raise BadEncoding(f"the body has Content-Encoding {name.decode('latin-1')!r:.60}; expected gzip, deflate or none")


def _decompress(body: bytes, encoding: int, limit: int) -> bytes:
    machine = zlib.decompressobj(encoding)
    try:
        plain = machine.decompress(body, limit + 1)
    except zlib.error:
        raise BadRequest("the body is not what its Content-Encoding says; compress it again") from None
    if len(plain) > limit:
        raise _too_large(limit)
    if not machine.eof or machine.unused_data:
        raise BadRequest("the compressed body is cut short, or more follows it; send one whole stream")
    return plain


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than the {limit} bytes that this server takes; send less at a time")
