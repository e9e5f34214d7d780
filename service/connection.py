"""The HTTP protocol of uvicorn with what it leaves open: clients that are slow, and errors as JSON.

uvicorn closes a connection that idles between two requests, but waits for ever for the first byte, for the rest of a
request's head, and for the rest of a body that was already refused.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.answers import error_body

_LINGER = 5.0  # seconds to swallow the rest of a body that was answered early, so that the client reads the answer


def make_protocol(header_timeout: float) -> type[HttpToolsProtocol]:
    """The protocol class for one server. header_timeout: seconds for the head of a request."""

    class Connection(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._close_in(header_timeout)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._close_in(header_timeout)

        def on_headers_complete(self) -> None:
            self._stop_timer()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            if self.cycle.response_complete and not self.transport.is_closing():
                self._close_in(self.timeout_keep_alive)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # With pipelined requests the newest cycle is not the one that was answered.
            answered_early = self.cycle.response_complete and self.cycle.more_body
            if answered_early and not self.transport.is_closing():
                self._close_in(_LINGER)

        def send_400_response(self, msg: str) -> None:
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
                self._close_in(header_timeout)
            else:
                self.transport.close()

        def _is_answering(self) -> bool:
            cycle: RequestResponseCycle | None = self.cycle  # None before the first request
            return cycle is not None and not cycle.response_complete

    return Connection
