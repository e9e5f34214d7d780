"""Requests to a server, with a time-out, a cap on the answer, and one sentence when there is none."""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import json
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnfold.errors import BnfoldError, ServerError

TIMEOUT = 60.0  # seconds
MAX_BYTES = 2**28  # of one answer
_BLOCK = 2**16
_MOST_IDLE = 64  # connections that are kept


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
    """GET, or POST of a body, on a connection of its own. Raises ServerError as `Session.ask` does."""
    with Session(url) as session:
        return session.ask("", body, headers, seconds=seconds)


class Session:
    """Connections to one server, kept open from one request to the next.

    Threads may share it: each request has a connection to itself. Redirects are not followed: they come back as what
    they are. Raises BnfoldError for an address that no request can be sent to.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self._host = check_address(url)
        self._url = url
        base = urllib.parse.urlsplit(url)
        self._secure = base.scheme == "https"
        self._netloc = base.netloc
        self._port = base.port
        self._path = base.path
        self._query = f"?{base.query}" if base.query else ""
        self._tls = tls
        self._proxy = None if _is_here(self._host) else _find_proxy(base.scheme, base.netloc)
        self._idle: list[http.client.HTTPConnection] = []

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        seconds: float = TIMEOUT,
        repeatable: bool = True,
    ) -> Reply:
        """GET, or POST of a body, of a path behind the address. repeatable: whether it does no harm to send it twice.

        Raises ServerError when there is no answer: nobody listens, it takes longer than `seconds`, it is no HTTP, or it
        has more than MAX_BYTES.
        """
        end = time.monotonic() + seconds
        while True:
            connection = self._take() if repeatable else None
            kept = connection is not None
            connection = connection or self._connect()
            try:
                return self._send(connection, path, body, headers or {}, end)
            except (http.client.HTTPException, OSError, ValueError) as problem:
                connection.close()
                # A server may close a connection that idles just when the next request is on its way.
                if kept and isinstance(problem, ConnectionError) and time.monotonic() < end:
                    continue
                reason = printable(str(problem) or type(problem).__name__)[:200]
                raise ServerError(f"{self._url} gave no answer ({reason}); check that a server runs there") from None
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        """Close the connections that are idle."""
        while (connection := self._take()) is not None:
            connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> http.client.HTTPConnection | None:
        try:
            return self._idle.pop()  # in one step, whatever other threads do
        except IndexError:
            return None

    def _connect(self) -> http.client.HTTPConnection:
        via = self._proxy
        host, port = (self._host, self._port) if via is None else (via.hostname or "", via.port)
        if not self._secure:
            return http.client.HTTPConnection(host, port)
        secure = http.client.HTTPSConnection(host, port, context=self._tls)
        if via is not None:
            secure.set_tunnel(self._host, self._port or 443, _credentials(via))
        return secure

    def _send(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        end: float,
    ) -> Reply:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        connection.timeout = left
        if connection.sock is not None:
            connection.sock.settimeout(left)
        target = (f"{self._path}{path}" or "/") + self._query
        if self._proxy is not None and not self._secure:
            target, headers = f"http://{self._netloc}{target}", {**headers, **_credentials(self._proxy)}
        # A server that has refused a request early may close while the rest is sent; its answer is there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("GET" if body is None else "POST", target, body, dict(headers))
        with connection.getresponse() as answer:
            found = {name.lower(): printable(value) for name, value in answer.headers.items()}
            whole = _read(answer, end)
        if answer.will_close:
            connection.close()
        elif len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        return Reply(answer.status, found, whole)


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


def _find_proxy(scheme: str, netloc: str) -> urllib.parse.SplitResult | None:
    """The proxy that the environment names for an address."""
    found = urllib.request.getproxies().get(scheme)
    if not found or urllib.request.proxy_bypass(netloc):
        return None
    return urllib.parse.urlsplit(found if "://" in found else f"http://{found}")


def _credentials(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    """What a proxy asks for, where its address has a name in it."""
    if proxy.username is None:
        return {}
    pair = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _is_here(host: str) -> bool:
    """Whether a host is this machine, which no proxy stands before."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")
