"""The HTTP protocol of uvicorn with what it leaves open: clients that are slow, and errors as JSON.

uvicorn closes a connection that idles between two requests, but waits for ever for the first byte, for the rest of a
request's head, and for the rest of a body that was already refused.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.answers import error_body

_LINGER = 5.0  # seconds to swallow the rest of a body that was answered early, so that the client reads the answer


class Connection(HttpToolsProtocol):
    """One connection. header_timeout: seconds for the head of a request."""

    header_timeout = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._close_in(self.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._close_in(self.header_timeout)

    def on_headers_complete(self) -> None:
        """The end of its head."""
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The end of its body."""
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

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        body = error_body(msg)
        head = [STATUS_LINE[400], b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)]
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
