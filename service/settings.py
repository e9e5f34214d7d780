"""What can be set on the server, checked once, in one frozen class."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from bnfold.errors import BnfoldError

Device = Literal["auto", "cpu", "cuda"]

PREFIX = "BNFOLD_"
_MIB = 2**20


def _cores() -> int:
    """The cores that this process may use, which is fewer than the machine has under taskset or cpusets."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """How to serve. Each field can come from the environment as BNFOLD_<FIELD>; arguments win.

    repository: folder of <name>/<version>/ bundles. threads: workers that call the runtime, 0 for one a core.
    max_batch_rows: rows that the batcher puts together; a larger request runs alone. max_request_rows: rows of one
    request. max_queue_rows: rows of one model that may wait. max_body_bytes: one request body, also decompressed;
    max_json_bytes: the JSON in it; max_memory_bytes: all bodies together. Times in seconds: request_timeout from
    queue to answer; header_timeout for the head of a request; body_timeout for its body, plus a second for every
    64 KiB received; drain_delay between "not ready" and the end of accepting; drain_timeout for what was accepted.
    Raises BnfoldError for a value outside its range.
    """

    repository: Path = Path("models")
    host: str = "127.0.0.1"
    port: int = 8000
    device: Device = "auto"
    threads: int = 0
    max_batch_rows: int = 64
    max_request_rows: int = 1024
    max_queue_rows: int = 4096
    max_body_bytes: int = 64 * _MIB
    max_json_bytes: int = 16 * _MIB
    max_memory_bytes: int = 512 * _MIB
    request_timeout: float = 30.0
    header_timeout: float = 10.0
    body_timeout: float = 20.0
    drain_delay: float = 0.5
    drain_timeout: float = 30.0

    def __post_init__(self) -> None:
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
                raise _bad(name, value, f"a number from {lowest:g} to {highest:g}")
        if self.device not in get_args(Device):
            raise _bad("device", self.device, "auto, cpu or cuda")
        if not self.host or not self.host.isprintable():
            raise _bad("host", self.host, "a host name or an address")
        if self.max_queue_rows < self.max_request_rows:
            raise _bad("max_queue_rows", self.max_queue_rows, f"at least max_request_rows ({self.max_request_rows})")
        if self.max_memory_bytes < self.max_body_bytes:
            raise _bad("max_memory_bytes", self.max_memory_bytes, f"at least max_body_bytes ({self.max_body_bytes})")

    @property
    def workers(self) -> int:
        """Worker threads in front of the runtime."""
        return self.threads or _cores()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
        """Settings from BNFOLD_* variables and from arguments, which win; an argument of None is not given.

        Raises BnfoldError for a variable that is no number, a value outside its range, an unknown argument.
        """
        found: dict[str, Any] = {}
        known = {field.name: type(field.default) for field in fields(cls)}
        for name, text in (os.environ if environment is None else environment).items():
            field = name.removeprefix(PREFIX).lower()
            if name.startswith(PREFIX) and field in known:
                found[field] = _parse(known[field], field, text)
        for name, value in arguments.items():
            if name not in known:
                raise BnfoldError(f"the server has no setting {name!r}; expected one of {', '.join(known)}")
            if value is not None:
                found[name] = Path(value) if name == "repository" else value
        return cls(**found)


_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "threads": (0, 1024),
    "max_batch_rows": (1, 2**20),
    "max_request_rows": (1, 2**20),
    "max_queue_rows": (1, 2**24),
    "max_body_bytes": (1024, 2**31),
    "max_json_bytes": (1024, 2**31),
    "max_memory_bytes": (1024, 2**40),
    "request_timeout": (0.001, 86400),
    "header_timeout": (0.01, 3600),
    "body_timeout": (0.01, 3600),
    "drain_delay": (0, 3600),
    "drain_timeout": (0, 3600),
}


def _parse(kind: type, name: str, text: str) -> Any:
    if kind in (int, float):
        try:
            return cast(Any, kind)(text)
        except ValueError:
            raise _bad(name, text, "a whole number" if kind is int else "a number") from None
    return Path(text) if issubclass(kind, Path) else text


def _bad(name: str, value: object, expected: str) -> BnfoldError:
    return BnfoldError(
        f"the server setting {name} (or {PREFIX}{name.upper()}) is {value!r:.80}; expected {expected}; correct it"
    )
