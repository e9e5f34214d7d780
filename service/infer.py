"""POST /v2/models/{model}[/versions/{version}]/infer, from bytes to bytes: the hot path, without FastAPI.

A FastAPI route costs more than a small network. The body is also binary, and clients send it without a Content-Type.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import Receive, Scope

from service.answers import Headers
from service.body import find_header, read_body
from service.compression import choose_coding, encode, read_accepted
from service.errors import BadMethod
from service.hub import Hub
from service.rest import build_response, parse_header_length, parse_request

_HEADER_LENGTH = b"inference-header-content-length"
_PREFIX, _SUFFIX = "/v2/models/", "/infer"


@dataclass(frozen=True)
class Target:
    """The model and version that a path asks inference of; version None for the one in service."""

    model: str
    version: str | None


@dataclass(frozen=True)
class Answer:
    """A successful response."""

    body: bytes
    headers: Headers
    content_type: bytes


def find_target(path: str) -> Target | None:
    """What a path asks inference of; None for every other path."""
    if not path.startswith(_PREFIX) or not path.endswith(_SUFFIX):
        return None
    parts = path[len(_PREFIX) : -len(_SUFFIX)].split("/")
    if len(parts) == 1 and parts[0]:
        return Target(parts[0], None)
    if len(parts) == 3 and parts[0] and parts[1] == "versions" and parts[2]:
        return Target(parts[0], parts[2])
    return None


async def infer(hub: Hub, target: Target, scope: Scope, receive: Receive) -> Answer:
    """Answer one inference request. Raises Fault, Disconnected."""
    with hub.counting() as count, hub.budget.lease() as lease:
        if scope["method"] != "POST":
            raise BadMethod(f"inference takes POST, not {scope['method']}", "POST")
        hub.check_open()
        engine = count.use(hub.repository.find(target.model, target.version))
        body = await read_body(scope, receive, lease, hub.settings, hub.pool)
        header_length = parse_header_length(find_header(scope["headers"], _HEADER_LENGTH), len(body))
        request = parse_request(body, header_length, engine.signature, hub.limits)
        outputs = await hub.infer(
            engine, request.inputs, request.rows, request.timeout, receive, count, request.priority
        )
        if request.ranks:
            loop = asyncio.get_running_loop()
            answer, json_length = await loop.run_in_executor(
                hub.pool, build_response, engine.name, engine.version, request, outputs
            )
        else:
            answer, json_length = build_response(engine.name, engine.version, request, outputs)
        accepted = read_accepted(scope["headers"]) if hub.settings.compress_answers else None
        coding = choose_coding(accepted, len(answer))
        packed = None if coding is None else await encode(answer, coding, hub.pool)
    headers = engine.headers
    if json_length is not None:
        headers = [(_HEADER_LENGTH, str(json_length).encode("ascii")), *headers]
    if coding is not None and packed is not None:
        headers = [(b"content-encoding", coding.name.encode("ascii")), *headers]
        answer = packed
    return Answer(answer, headers, b"application/json" if json_length is None else b"application/octet-stream")
