"""The log: lines for people, or one JSON object a line.

A line never holds a key, a body or a query: what a request brought in is named by its path at most, and cut short.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from service.settings import LogFormat, Settings

# What a record may carry beside its message, given as `extra`.
FIELDS = ("request_id", "model", "version", "method", "path", "status", "duration_ms")

_LONGEST = 20_000
_PAUSE = 1.0  # seconds between two warnings that strangers bring about
_logger = logging.getLogger(__name__)


def set_up_logs(log_format: LogFormat, worker: int | None = None) -> None:
    """Show the log on stderr where nobody has set up logging; uvicorn's own lines from warnings on.

    worker: the number that each line carries, None for a process on its own.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(worker) if log_format == "json" else TextLines(worker))
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_THINNED)
    logging.getLogger("grpc._cython.cygrpc").addFilter(is_heard)
    # It warns of every form that a stranger sends damaged.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def say_where(settings: Settings, where: str) -> None:
    """Say that the server accepts requests, and who can reach it."""
    if not settings.is_loopback and settings.api_key_file is None:
        _logger.warning("%s can be reached from other machines, and asks nobody for a key", where)
    if not settings.is_loopback and settings.api_key_file is not None and settings.tls_cert is None:
        _logger.warning(
            "keys travel to %s in the clear; give --tls-cert and --tls-key, or let what stands in front speak TLS",
            where,
        )
    several = "" if settings.workers == 1 else f" with {settings.workers} workers"
    _logger.info("serving on %s%s (docs: %s/docs); stop with Ctrl-C or SIGTERM", where, several, where)


class Thinned(logging.Filter):
    """Lets one warning a second through, with the number of those left out: any stranger can bring them about."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._until = -math.inf
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written; errors are."""
        if record.levelno > logging.WARNING:
            return True
        now = self._clock()
        if now < self._until:
            self._left_out += 1
            return False
        if self._left_out:
            record.msg, record.args = f"{record.getMessage()} (and {self._left_out} more before)", ()
        self._until, self._left_out = now + _PAUSE, 0
        return True


_THINNED = Thinned()


def is_heard(record: logging.LogRecord) -> bool:
    """Whether a record of grpcio tells of more than an answer to a call that was over.

    A call whose message is too large is ended by the library, which writes a traceback where the answer comes before
    that is told; any stranger can bring it about.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"


class TextLines(logging.Formatter):
    """For people: time, level, logger, message, and what else there is of a request."""

    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._worker = "" if worker is None else f" worker {worker}"

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on lines of its own."""
        extra = "".join(f" {name}={value}" for name, value in _extra(record))
        message = _clean(record.getMessage() + extra)
        line = f"{_time(record)}{self._worker} {record.levelname} {record.name}: {message}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class JsonLines(logging.Formatter):
    """For programs: one object a line."""

    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._fixed: dict[str, Any] = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record holds."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
            **self._fixed,
            **dict(_extra(record)),
        }
        if record.exc_info is not None:
            trace = self.formatException(record.exc_info)
            line["exception"] = trace[-_LONGEST:].encode("utf-8", "backslashreplace").decode("utf-8")
        return orjson.dumps(line).decode("utf-8")


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _clean(text: str) -> str:
    """A text in one line of valid characters: a stranger's line break must not begin a line of the log."""
    text = text[:_LONGEST]
    if not text.isprintable():
        text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return text


def _extra(record: logging.LogRecord) -> list[tuple[str, int | float | str]]:
    found = vars(record)
    return [(name, _readable(found[name])) for name in FIELDS if found.get(name) is not None]


def _readable(value: Any) -> int | float | str:
    return value if isinstance(value, int | float) else _clean(str(value))
