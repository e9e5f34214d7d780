"""The first to see a request: answers inference itself, passes the rest to FastAPI, and lets no exception out.

Raw ASGI. Starlette would answer an unforeseen exception too, but raises it again, and the HTTP server then drops the
connection with the answer still on it.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Disconnected, Fault
from service.http.answers import error_body, send_fault, send_response
from service.http.infer import find_target, infer
from service.hub import Hub
from service.telemetry.watch import CURRENT, ID_HEADER, identify

_logger = logging.getLogger(__name__)
_FAILURE = 500


class Front:
    """ASGI middleware. While the server drains it asks every client to leave its connection."""

    def __init__(self, app: ASGIApp, hub: Hub) -> None:
        self._app = app
        self._hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, watch = identify(scope["headers"]), self._hub.watch
        reply = _Reply(send, request_id, closing=self._hub.lifecycle.draining)
        if watch is None:
            await self._answer(scope, receive, reply)
            return
        account = watch.begin(scope, request_id)
        token = CURRENT.set(account)
        try:
            await self._answer(scope, receive, reply)
        finally:
            CURRENT.reset(token)
            account.status = reply.status
            watch.end(account)

    async def _answer(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        try:
            if self._hub.keys.are_asked_for:
                self._admit(scope)
            target = find_target(scope["path"])
            if target is None:
                await self._app(scope, receive, reply.send)
            else:
                answer = await infer(self._hub, target, scope, receive)
                headers = [*answer.headers, *answer.engine.headers]
                await send_response(reply.send, 200, answer.body, headers, answer.content_type)
        except Fault as fault:
            await send_fault(reply.send, fault)
        except Disconnected:
            return
        except Exception:
            if reply.status:
                raise
            what = "%s %s failed in an unforeseen way"
            _logger.exception(what, scope["method"], scope["path"], extra={"request_id": reply.request_id.decode()})
            await send_response(reply.send, 500, error_body("the server failed on this request; its log says why"))

    def _admit(self, scope: Scope) -> None:
        """Raise Unauthorized before anything of the body is read."""
        try:
            self._hub.keys.admit(scope["path"], scope["headers"])
        except Fault as fault:
            self._hub.metrics.count_stray(fault.reason)
            raise


class _Reply:
    """What was sent of one response; its status is 0 before. It carries the id of its request."""

    __slots__ = ("_closing", "_send", "request_id", "status")

    def __init__(self, send: Send, request_id: bytes, *, closing: bool) -> None:
        self.request_id = request_id
        self.status = 0
        self._send = send
        self._closing = closing

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status == _FAILURE:
                _logger.error("a request failed", extra={"request_id": self.request_id.decode(), "status": _FAILURE})
            headers = [*message.get("headers", []), (ID_HEADER, self.request_id)]
            if self._closing:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)
