"""From what happened to a response: the one table of status codes, and the one shape of an error."""

from __future__ import annotations

from collections.abc import Iterable

import orjson
from starlette.types import Send

from service.errors import (
    BadEncoding,
    BadMethod,
    BadRequest,
    Busy,
    Fault,
    Forbidden,
    LoadFailed,
    ModelFault,
    SlowClient,
    TooLarge,
    Unauthorized,
    UnknownModel,
    UnknownPath,
    Unsupported,
)

Headers = list[tuple[bytes, bytes]]

RETRY_AFTER = b"1"  # seconds; a full queue is empty again in less

_STATUS: dict[type[Fault], int] = {
    BadRequest: 400,
    LoadFailed: 400,
    Unauthorized: 401,
    Forbidden: 403,
    UnknownModel: 404,
    UnknownPath: 404,
    BadMethod: 405,
    SlowClient: 408,
    TooLarge: 413,
    BadEncoding: 415,
    ModelFault: 500,
    Unsupported: 501,
    Busy: 503,
}


def status_of(fault: Fault) -> int:
    """The status code of a fault: its own, or that of the nearest kind above it."""
    return next((_STATUS[kind] for kind in type(fault).__mro__ if kind in _STATUS), 500)


def fault_headers(fault: Fault) -> Headers:
    """What a response to this fault needs beside its body."""
    if isinstance(fault, Busy):
        return [(b"retry-after", str(fault.retry_after).encode("ascii"))]
    if isinstance(fault, BadMethod):
        return [(b"allow", fault.allowed.encode("ascii"))]
    if isinstance(fault, BadEncoding):
        return [(b"accept-encoding", b"gzip, deflate")]
    if isinstance(fault, Unauthorized):
        return [(b"www-authenticate", b'Bearer realm="bnfold"')]
    if isinstance(fault, SlowClient):
        return [(b"connection", b"close")]
    return []


def error_body(message: str) -> bytes:
    """`{"error": message}`, whatever the message holds."""
    return orjson.dumps({"error": message.encode("utf-8", "replace").decode("utf-8")})


async def send_response(
    send: Send,
    status: int,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/json",
) -> None:
    """A whole response."""
    head = [(b"content-type", content_type), (b"content-length", str(len(body)).encode("ascii")), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_fault(send: Send, fault: Fault) -> None:
    """A fault as a response."""
    await send_response(send, status_of(fault), error_body(str(fault)), fault_headers(fault))
