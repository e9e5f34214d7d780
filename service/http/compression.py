"""Compressed answers: which coding a client may be sent, and the coding itself.

Only answers of inference with status 200 are compressed: tritonclient's aio client reads compressed errors as they are.
Source: RFC 9110, 12.5.3 (Accept-Encoding), 12.4.2 (weights), 8.4.1 (codings; "deflate" is the zlib format).
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import NamedTuple

LARGE = 16 * 2**10  # bytes from which compressing takes longer than the way to a thread and back
WORTH = 4 * 2**10  # bytes below which an answer is as fast on the wire as it is

_WINDOW = {"gzip": 31, "deflate": 15}  # zlib's window bits: 15, plus 16 for a gzip header
_FAST = 1  # numbers hardly pack better with more effort
_WEIGHT = re.compile(r"0(?:\.\d{0,3})?|1(?:\.0{0,3})?", re.A)


class Coding(NamedTuple):
    """A Content-Encoding. forced: the client refuses an answer as it is."""

    name: str
    forced: bool


def read_accepted(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The Accept-Encoding of a request, None without one; lines of it are one list (RFC 9110, 5.3)."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"accept-encoding":
            found = value if found is None else found + b"," + value
    return found


def choose_coding(accepted: bytes | None, size: int) -> Coding | None:
    """The coding for a body of `size` bytes and an Accept-Encoding header; None for none.

    The one with the largest weight, gzip before deflate where they are equal, none where a client prefers identity, or
    names neither. A client that refuses everything is answered without a coding: that is what Triton does.
    """
    if accepted is None or (size < WORTH and b";" not in accepted):
        return None
    weights = _weights(accepted.decode("latin-1"))
    if not weights.keys() & _WINDOW.keys():
        return None
    rest = weights.get("*", 0.0)
    name = max(_WINDOW, key=lambda coding: weights.get(coding, rest))
    weight = weights.get(name, rest)
    identity = weights.get("identity", -1.0 if "*" not in weights else rest)
    if weight <= 0 or identity > weight:
        return None
    return Coding(name, forced=identity == 0) if identity == 0 or size >= WORTH else None


def compress(body: bytes, name: str) -> bytes:
    """The body in a coding."""
    machine = zlib.compressobj(_FAST, zlib.DEFLATED, _WINDOW[name])
    return machine.compress(body) + machine.flush()


async def encode(body: bytes, coding: Coding, pool: Executor) -> bytes | None:
    """The body in a coding, None where it would grow. pool: where a large one is compressed."""
    if len(body) < LARGE:
        packed = compress(body, coding.name)
    else:
        packed = await asyncio.get_running_loop().run_in_executor(pool, compress, body, coding.name)
    return packed if coding.forced or len(packed) < len(body) else None


def _weights(accepted: str) -> dict[str, float]:
    """The weight of each coding that the header names well."""
    found: dict[str, float] = {}
    for part in accepted.split(","):
        name, _, parameter = part.partition(";")
        name = name.strip().lower()
        key, _, value = parameter.partition("=")
        if not parameter.strip():
            weight = 1.0
        elif key.strip().lower() == "q" and _WEIGHT.fullmatch(value.strip()):
            weight = float(value)
        else:
            continue
        found["gzip" if name == "x-gzip" else name] = weight
    return found
