"""The HTTP protocol of uvicorn with what it leaves open: clients that are slow, and errors as JSON.

uvicorn closes a connection that idles between two requests, but waits for ever for the first byte, for the rest of a
request's head, and for the rest of a body that was already refused. It bounds no head. It drops the body of a request
that offers another protocol, as `curl --http2` and Java's client do, though a server may pass over the offer (RFC 9110,
7.8).
"""

from __future__ import annotations

import asyncio
import contextlib

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.answers import error_body

_LINGER = 5.0  # seconds to swallow the rest of a body that was answered early, so that the client reads the answer
_LONGEST_HEAD = 64 * 2**10  # bytes of a head or of trailers, give or take one read from the socket
_NO_HTTP = "the request is no HTTP/1.1 that can be read here; send another"


class Connection(HttpToolsProtocol):
    """One connection. header_timeout: seconds for the head of a request."""

    header_timeout = 10.0
    _timer: asyncio.TimerHandle | None = None
    _silent = 0  # bytes since the parser last came to the end of something

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._close_in(self.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """What has arrived: several requests, or a piece of one."""
        self._unset_keepalive_if_required()
        self._silent += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.logger.warning("what is no HTTP was refused")
            self._refuse(400, _NO_HTTP)
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
        """The first byte of a request."""
        super().on_message_begin()
        self._close_in(self.header_timeout)

    def on_headers_complete(self) -> None:
        """The end of its head."""
        self._silent = 0
        self._stop_timer()
        super().on_headers_complete()

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

    def _refuse(self, status: int, message: str) -> None:
        body = error_body(message)
        head = [STATUS_LINE[status], b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)]
        self.transport.write(b"".join([*head, b"connection: close\r\n\r\n", body]))
        self.transport.close()

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
            self._close_in(self.header_timeout)
        else:
            self.transport.close()

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete


def make_protocol(header_timeout: float) -> type[Connection]:
    """The protocol class for one server."""
    return type("Connection", (Connection,), {"header_timeout": header_timeout})
