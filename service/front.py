"""The first to see a request: answers inference itself, passes the rest to FastAPI, and lets no exception out.

Raw ASGI. Starlette would answer an unforeseen exception too, but raises it again, and the HTTP server then drops the
connection with the answer still on it.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from service.answers import error_body, send_fault, send_response
from service.errors import Disconnected, Fault
from service.hub import Hub
from service.infer import find_target, infer

_logger = logging.getLogger(__name__)


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
        reply = _Reply(send, closing=self._hub.lifecycle.draining)
        try:
            target = find_target(scope["path"])
            if target is None:
                await self._app(scope, receive, reply.send)
            else:
                answer = await infer(self._hub, target, scope, receive)
                await send_response(reply.send, 200, answer.body, answer.headers, answer.content_type)
        except Fault as fault:
            await send_fault(reply.send, fault)
        except Disconnected:
            return
        except Exception:
            if reply.started:
                raise
            _logger.exception("%s %s failed in an unforeseen way", scope["method"], scope["path"])
            await send_response(reply.send, 500, error_body("the server failed on this request; its log says why"))


class _Reply:
    """What was sent of one response."""

    def __init__(self, send: Send, *, closing: bool) -> None:
        self.started = False
        self._send = send
        self._closing = closing

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if self._closing:
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await self._send(message)
