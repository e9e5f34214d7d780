"""The HTTP protocol of uvicorn with what it leaves open: clients that are slow or too many, and errors as JSON.

uvicorn closes a connection that idles between two requests, but waits for ever for the first byte, for the rest of a
request's head, for the rest of a body that was already refused, and for a client to read its answer. It bounds no head.
It drops the body of a request that offers another protocol, as `curl --http2` and Java's client do, though a server may
pass over the offer (RFC 9110, 7.8).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.http.answers import RETRY_AFTER, error_body
from service.http.bounds import Bounds

_LINGER = 5.0  # seconds to swallow the rest of a body that was answered early, so that the client reads the answer
_LONGEST_HEAD = 64 * 2**10  # bytes of a head or of trailers, give or take one read from the socket
LONGEST_URL = 8 * 2**10
MOST_HEADERS = 100
_SLOWEST = 64 * 2**10  # bytes in a second that a client has to read
_VERSIONS = ("1.1", "1.0")
_FAREWELL = 1.0  # seconds that a client has to read why it was turned away
_FIRST_WORDS = 2.0  # seconds that a client which has connected has to send its request while the server stops
_NO_HTTP = "the request is no HTTP/1.1 that can be read here; send another"


class _TooLarge(Exception):
    """A part of a head beyond its cap; the parser ends at the first exception of a callback."""


class Connection(HttpToolsProtocol):
    """One connection of a server. bounds: what it and its like may take."""

    bounds: Bounds
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.Handle | None = None
    _unsent = 0
    _before = 0
    _at_work: RequestResponseCycle | None = None  # whose task runs: with pipelined requests that is not the newest
    _hosts = 0  # Host headers of the request
    _silent = 0  # bytes since the parser last came to the end of something
    _excess: tuple[int, str] | None = None  # status and sentence for a head that is too large
    _refusal: tuple[int, str] | None = None  # the same, for what follows requests that have no answer yet
    _head_ended = False
    _trailers = 0
    _is_turned_away = False
    _is_parting = False  # answered for the last time, in the midst of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        if len(self.connections) >= self.bounds.most_connections:
            self._turn_away(transport)
            return
        super().connection_made(transport)
        self.timeout_keep_alive = self.bounds.keep_alive_timeout  # type: ignore[assignment]
        self._close_in(self.bounds.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop_timer()
        self._stop_write_timer()
        if self._is_turned_away:
            self.bounds.turned_away -= 1
            return
        super().connection_lost(exc)
        cycle = self._at_work
        if cycle is not None and not cycle.response_complete:  # uvicorn tells the newest alone
            cycle.disconnected = True
            cycle.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._at_work = cycle
        cycle.transport = _Parting(self)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def part(self) -> None:
        """Close after the last answer. While a body still arrives, what is closed at once is reset, and the answer lost
        on its way (RFC 9112, 9.6): so it is only said that nothing more will come, and the rest is swallowed.
        """
        cycle = self._at_work
        if cycle is None or not cycle.more_body or self.transport.is_closing():
            self.transport.close()
            return
        self._is_parting = True  # on_response_complete sees to it that this does not take for ever
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def data_received(self, data: bytes) -> None:
        """What has arrived: several requests, or a piece of one."""
        if self._is_turned_away or self._is_parting or self._refusal is not None:
            return
        self._silent += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.logger.warning("what is no HTTP was refused")
            self._refuse(*(self._excess or (400, _NO_HTTP)))
            return
        if self._silent > _LONGEST_HEAD and not self.transport.is_closing():
            self._refuse(431, f"the head or the trailers of the request go beyond {_LONGEST_HEAD} bytes; send less")

    def _feed(self, data: bytes) -> None:
        """Parse. An upgrade that is offered is left out, and its request parsed anew, so that its body is seen."""
        rest = data
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                if not self._should_upgrade():  # CONNECT: a tunnel, and what follows is none of HTTP
                    return
                rest = rest[offer.args[0] :]
                self._begin_without_offer()

    def _begin_without_offer(self) -> None:
        version, method = self.parser.get_http_version().encode("ascii"), self.parser.get_method()
        lines = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        head = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(AttributeError):  # httptools < 0.6.3; uvicorn does the same
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)

    def _should_upgrade(self) -> bool:
        """Asked by uvicorn of a request that offers an upgrade: whether not to start it."""
        return bool(self.parser.get_method() != b"CONNECT")

    def on_message_begin(self) -> None:
        """The first byte of a request. An empty line before it is none: it must not keep a connection open."""
        self._unset_keepalive_if_required()
        self._head_ended = False
        self._hosts = 0
        super().on_message_begin()
        self._close_in(self.bounds.header_timeout)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of it, or a trailer, which is passed over: it must not pass for a header (RFC 9110, 6.5.1).

        Called ten times a request, so it does what uvicorn's own does instead of calling it.
        """
        if self._head_ended:
            self._trailers += 1
            if self._trailers > MOST_HEADERS:
                self._exceed(431, f"the request has more than {MOST_HEADERS} trailers; send fewer")
            return
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def _exceed(self, status: int, message: str) -> None:
        self._excess = status, message
        raise _TooLarge

    def on_headers_complete(self) -> None:
        """The end of its head."""
        self._check_head()
        self._end_head()
        super().on_headers_complete()

    def _check_head(self) -> None:
        if len(self.url) > LONGEST_URL:
            self._exceed(414, f"the address of the request goes beyond {LONGEST_URL} bytes; send a shorter one")
        if len(self.headers) > MOST_HEADERS:
            self._exceed(431, f"the request has more than {MOST_HEADERS} headers; send fewer")
        if self.parser.get_http_version() not in _VERSIONS:
            self._exceed(505, "the request is in another version of HTTP; send HTTP/1.1")
        if self._hosts != 1 and (self._hosts or self.parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
            self._exceed(400, f"the request has {self._hosts} Host headers; send one")

    def _end_head(self) -> None:
        self._silent = self._trailers = 0
        self._head_ended = True
        self._stop_timer()
        self._unset_keepalive_if_required()  # set by the answer to an earlier request

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._silent = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of its body."""
        self._silent = 0
        if self.parser.should_upgrade() and self._should_upgrade():  # it is parsed anew
            return
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._close_in(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        """Its answer was written."""
        super().on_response_complete()
        # With pipelined requests the newest cycle is not the one that was answered.
        answered_early = self.cycle.response_complete and self.cycle.more_body
        if answered_early and not self.transport.is_closing():
            self._close_in(_LINGER)
        if self._refusal is not None and not self._is_answering() and not self.transport.is_closing():
            self._refuse(*self._refusal)
        self._see_off()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered: what is not sent yet is kept, for a while."""
        super().pause_writing()
        self._stop_write_timer()
        self._unsent = self.transport.get_write_buffer_size()
        self.bounds.unsent += self._unsent
        if self.bounds.unsent > self.bounds.most_unsent:
            self._write_timer = self.loop.call_soon(self._abort)
        else:
            self._look_in()

    def resume_writing(self) -> None:
        """The client has read enough to be sent more."""
        self._stop_write_timer()
        if not self._is_turned_away:
            super().resume_writing()
        self._see_off()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came between two requests."""
        super().timeout_keep_alive_handler()
        self._see_off()

    def shutdown(self) -> None:
        """The server stops. Who has just connected, or is in the midst of a head, is about to ask."""
        if not self._head_ended and not self._is_answering() and not self.transport.is_closing():
            self._close_in(_FIRST_WORDS)
            return
        super().shutdown()
        self._see_off()

    def _see_off(self) -> None:
        """A connection that closes stays until its client has read the rest, which may be never."""
        if self.transport.is_closing() and self._write_timer is None and self.transport.get_write_buffer_size():
            self._look_in()

    def _look_in(self) -> None:
        """Look after a while what the client has read of its answer."""
        self._before = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.bounds.write_timeout, self._look)

    def _look(self) -> None:
        left = self.transport.get_write_buffer_size()
        if self._before - left < _SLOWEST * self.bounds.write_timeout:
            self._abort()
            return
        self.bounds.unsent -= max(0, self._unsent - left)
        self._unsent = min(self._unsent, left)
        self._look_in()

    def _abort(self) -> None:
        self.bounds.count("slow_client")
        self.transport.abort()

    def _stop_write_timer(self) -> None:
        self.bounds.unsent -= self._unsent
        self._unsent = 0
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _turn_away(self, transport: asyncio.Transport) -> None:
        """Answer 503 before anything is asked. What arrives is passed over, or the answer would be lost on its way."""
        self._is_turned_away = True
        self.transport = transport
        self.bounds.turned_away += 1
        self.bounds.count("busy")
        if self.bounds.turned_away > max(16, self.bounds.most_connections // 8):
            transport.abort()
            return
        transport.write(_write_error(503, "the server has as many connections as it may; try again", retry=True))
        if transport.can_write_eof():
            transport.write_eof()
        self._timer = self.loop.call_later(_FAREWELL, transport.abort)

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be read, and close; after the whole requests before it, whose answers are on their way."""
        if self._is_answering() and not self.cycle.more_body:
            self._refusal = status, message
            self.flow.pause_reading()
            return
        self.transport.write(_write_error(status, message))
        self.transport.close()
        self._see_off()

    def _close_in(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_answering():  # an earlier request of this connection
            self._close_in(self.bounds.header_timeout)
        else:
            self.transport.close()
            self._see_off()

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete


class _Parting:
    """The transport of a connection as uvicorn's cycles have it: they close it by themselves after a last answer."""

    __slots__ = ("_connection", "write")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.write = connection.transport.write

    def close(self) -> None:
        """Close it when the client can have read the answer."""
        self._connection.part()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.transport, name)


def make_protocol(bounds: Bounds) -> type[Connection]:
    """The protocol class for one server."""
    return type("Connection", (Connection,), {"bounds": bounds})


def _write_error(status: int, message: str, *, retry: bool = False) -> bytes:
    body = error_body(message)
    head = [STATUS_LINE[status], b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)]
    if retry:
        head.append(b"retry-after: %s\r\n" % RETRY_AFTER)
    return b"".join([*head, b"connection: close\r\n\r\n", body])
