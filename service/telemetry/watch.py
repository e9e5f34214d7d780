"""Requests one by one: the id that each has, and what is noted of it while an access log or traces are on.

When both are off nothing is noted, and a request costs no more than the search for its id.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.types import Scope

ID_HEADER = b"x-request-id"
# What a stranger may put into our log and his own answer: no spaces, quotes, separators or line breaks.
_SANE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_START = os.urandom(6).hex().encode("ascii")
_numbers = itertools.count(1)
_LONGEST_PATH = 300
_GONE = 499  # as nginx writes a client that left before its answer

_logger = logging.getLogger("service.access")


@dataclass(eq=False)
class Account:
    """What is noted of one request. Times in ns since 1970, 0 for what did not happen; status 0: no answer."""

    request_id: bytes
    method: str
    path: str
    began: int
    model: str = ""
    version: str = ""
    queued: int = 0
    computed: int = 0
    delivered: int = 0
    status: int = 0
    ended: int = 0
    trace: Any = field(default=None, repr=False)

    def note_run(self, model: str, version: str, began: int, queued: float) -> None:
        """It went into the queue at `began`, waited so many seconds, and has its outputs now."""
        self.model, self.version = model, version
        self.queued, self.computed = began, began + int(queued * 1e9)
        self.delivered = time.time_ns()


class Tracer(Protocol):
    """Makes spans of accounts; see service.telemetry.traces."""

    def begin(self, account: Account, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """A request has come."""

    def end(self, account: Account) -> None:
        """It has its answer."""

    def close(self) -> None:
        """Send what is left."""


CURRENT: ContextVar[Account | None] = ContextVar("account", default=None)


class Watch:
    """The observers that are on: the access log, the traces, or both."""

    def __init__(self, *, access_log: bool, tracer: Tracer | None) -> None:
        self._access_log = access_log
        self._tracer = tracer

    def begin(self, scope: Scope, request_id: bytes) -> Account:
        """The account of a request that has come."""
        account = Account(request_id, scope["method"], scope["path"][:_LONGEST_PATH], time.time_ns())
        if self._tracer is not None:
            self._tracer.begin(account, scope["headers"])
        return account

    def end(self, account: Account) -> None:
        """It has its answer, or nobody waits for one."""
        account.ended = time.time_ns()
        if self._tracer is not None:
            self._tracer.end(account)
        if self._access_log:
            _logger.info("answered" if account.status else "client gone", extra=_fields(account))

    def close(self) -> None:
        """Send what is left."""
        if self._tracer is not None:
            self._tracer.close()


def identify(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The id of a request: its client's, when it is a sane one, otherwise one of our own."""
    for name, value in headers:
        if name == ID_HEADER and _SANE.fullmatch(value):
            return value
    return b"%s-%x" % (_START, next(_numbers))


def _fields(account: Account) -> dict[str, Any]:
    return {
        "request_id": account.request_id.decode("ascii"),
        "method": account.method,
        "path": account.path,
        "model": account.model or None,
        "version": account.version or None,
        "status": account.status or _GONE,
        "duration_ms": round((account.ended - account.began) / 1e6, 3),
    }
