"""POST /v2/models/{model}[/versions/{version}]/infer as raw ASGI in front of FastAPI.

It is the hot path: a FastAPI route costs more than a small network. It is also binary, and clients send it without a
Content-Type.
"""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from service.answers import Headers, error_body, send_fault, send_response
from service.body import find_header, read_body
from service.errors import BadMethod, Disconnected, Fault
from service.hub import Hub
from service.protocol import build_response, parse_header_length, parse_request

_logger = logging.getLogger(__name__)

_HEADER_LENGTH = b"inference-header-content-length"
_PREFIX, _SUFFIX = "/v2/models/", "/infer"
_BINARY = b"application/octet-stream"


class InferEndpoint:
    """ASGI middleware that answers inference itself and passes everything else on.

    While the server drains it also asks every client to leave its connection.
    """

    def __init__(self, app: ASGIApp, hub: Hub) -> None:
        self._app = app
        self._hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._hub.lifecycle.draining:
            send = _closing(send)
        target = find_target(scope["path"])
        if target is None:
            await self._app(scope, receive, send)
            return
        try:
            status, body, headers, content_type = await self._infer(scope, receive, *target)
        except Fault as fault:
            await send_fault(send, fault)
        except Disconnected:
            return
        except Exception:
            _logger.exception("inference failed in an unforeseen way")
            await send_response(send, 500, error_body("the server failed on this request; its log says why"))
        else:
            await send_response(send, status, body, headers, content_type)

    async def _infer(
        self, scope: Scope, receive: Receive, model: str, version: str | None
    ) -> tuple[int, bytes, Headers, bytes]:
        hub = self._hub
        with hub.counting() as count, hub.budget.lease() as lease:
            if scope["method"] != "POST":
                raise BadMethod(f"inference takes POST, not {scope['method']}", "POST")
            hub.check_open()
            engine = count.engine = hub.repository.find(model, version)
            body = await read_body(scope, receive, lease, hub.settings)
            header_length = parse_header_length(find_header(scope["headers"], _HEADER_LENGTH), len(body))
            request = parse_request(body, header_length, engine.inputs, engine.outputs, hub.limits)
            outputs = await hub.infer(engine, request.inputs, request.rows, request.timeout, receive, count)
            answer, json_length = build_response(engine.name, engine.version, request, outputs)
            if json_length is None:
                return 200, answer, engine.headers, b"application/json"
            return 200, answer, [(_HEADER_LENGTH, str(json_length).encode("ascii")), *engine.headers], _BINARY


def find_target(path: str) -> tuple[str, str | None] | None:
    """The model and version that a path asks inference of; None for every other path."""
    if not path.startswith(_PREFIX) or not path.endswith(_SUFFIX):
        return None
    parts = path[len(_PREFIX) : -len(_SUFFIX)].split("/")
    if len(parts) == 1 and parts[0]:
        return parts[0], None
    if len(parts) == 3 and parts[0] and parts[1] == "versions" and parts[2]:
        return parts[0], parts[2]
    return None


def _closing(send: Send) -> Send:
    async def closing(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", [])
            message = {**message, "headers": [*headers, (b"connection", b"close")]}  # type: ignore[misc]
        await send(message)

    return closing  # type: ignore[return-value]
