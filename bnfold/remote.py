"""One request to a server, with a time-out, a cap on the answer, and one sentence when there is none."""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnfold.errors import BnfoldError

TIMEOUT = 60.0  # seconds
MAX_BYTES = 2**28  # of one answer
_BLOCK = 2**16


@dataclass(frozen=True)
class Reply:
    """What a server answered, whatever its status. headers: by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> Any:
        """The body as strict JSON: no NaN, no infinity. Raises ValueError for anything else."""
        try:
            return json.loads(self.body, parse_constant=_refuse_constant)
        except RecursionError:
            raise ValueError("it is nested too deep") from None

    def error(self) -> str:
        """The sentence of an error: its `error` where it has one, else the status in words."""
        try:
            said = self.document()["error"]
        except (ValueError, KeyError, TypeError):
            said = http.client.responses.get(self.status, "no reason given")
        return printable(str(said))[:300]


def printable(text: str) -> str:
    """Text from outside in one line, without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def ask(
    url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, *, seconds: float = TIMEOUT
) -> Reply:
    """GET, or POST of a body. Redirects are not followed: they come back as what they are.

    Raises BnfoldError when there is no answer: nobody listens, it takes longer than `seconds`, it is no HTTP, or it has
    more than MAX_BYTES.
    """
    host = check_address(url)
    opener = urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if _is_here(host) else []))
    end = time.monotonic() + seconds
    try:
        request = urllib.request.Request(url, data=body, headers=dict(headers or {}))
        try:
            answer = opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as problem:  # an answer too
            answer = problem
        with answer:
            found = {name.lower(): printable(value) for name, value in answer.headers.items()}
            return Reply(int(answer.status or 0), found, _read(answer, end))
    except (http.client.HTTPException, OSError, ValueError) as problem:
        reason = getattr(problem, "reason", None) or str(problem) or type(problem).__name__
        raise BnfoldError(
            f"{url} gave no answer ({printable(str(reason))[:200]}); check that a server runs there"
        ) from None


def check_address(url: str) -> str:
    """The host of an address. Raises BnfoldError for one that no request can be sent to."""
    try:
        base = urllib.parse.urlsplit(url)
        host = base.hostname if base.scheme in ("http", "https") and base.username is None else None
        _ = base.port  # raises for none that there is
    except ValueError:
        host = None
    if not host:
        named = "an address with a name or password in it" if "@" in url else f"'{printable(url)[:200]}'"
        raise BnfoldError(f"{named} is no address of a server; expected one like http://127.0.0.1:8000")
    return host


def _read(answer: Any, end: float) -> bytes:
    """The body. The time-out of the socket is for each of its reads; this one is for all of them."""
    parts = []
    left = MAX_BYTES
    while block := answer.read1(_BLOCK):
        left -= len(block)
        if left < 0:
            raise ValueError(f"it is longer than {MAX_BYTES} bytes")
        if time.monotonic() > end:
            raise TimeoutError("it took too long")
        parts.append(block)
    if answer.length:  # of the announced length, what did not come: read1 says nothing of it
        raise http.client.IncompleteRead(b"".join(parts), answer.length)
    return b"".join(parts)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """No other address than the one that was given is asked."""


def _is_here(host: str) -> bool:
    """Whether a host is this machine, which no proxy stands before."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")
