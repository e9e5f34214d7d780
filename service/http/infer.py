"""POST /v2/models/{model}[/versions/{version}]/infer, from bytes to bytes: the hot path, without FastAPI.

A FastAPI route costs more than a small network. The body is also binary, and clients send it without a Content-Type.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

from starlette.types import Receive, Scope

from service.engine import Engine
from service.errors import BadMethod
from service.http.answers import Headers
from service.http.body import find_header, read_body
from service.http.compression import choose_coding, encode, read_accepted
from service.http.rest import build_response, parse_header_length, parse_request
from service.hub import Hub
from service.protocol.requests import InferRequest
from service.queueing.backlog import Outputs

HEADER_LENGTH = b"inference-header-content-length"
ACCEPTED = "bnfold.accepted"  # in the scope of a request that was taken before the server closed
_PREFIX, _SUFFIX = "/v2/models/", "/infer"


@dataclass(frozen=True)
class Target:
    """The model and version that a path asks inference of; version None for the one in service."""

    model: str
    version: str | None

    @property
    def path(self) -> str:
        """The path."""
        version = "" if self.version is None else f"/versions/{self.version}"
        return f"{_PREFIX}{self.model}{version}{_SUFFIX}"


class Answer(NamedTuple):
    """A successful response. headers: beside the proof of the engine, which goes with it too."""

    body: bytes
    headers: Headers
    content_type: bytes
    engine: Engine


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
        if ACCEPTED not in scope:
            hub.check_open()
        engine = count.use(hub.repository.find(target.model, target.version))
        body = await read_body(scope, receive, lease, hub.settings, hub.pool)
        header_length = parse_header_length(find_header(scope["headers"], HEADER_LENGTH), len(body))
        request = parse_request(body, header_length, engine.signature, hub.limits)
        outputs = await hub.infer(
            engine, request.inputs, request.rows, request.timeout, receive, count, request.priority
        )
        accepted = read_accepted(scope["headers"]) if hub.settings.compress_answers else None
        return await compose(hub, engine, request, outputs, accepted)


async def compose(hub: Hub, engine: Engine, request: InferRequest, outputs: Outputs, accepted: bytes | None) -> Answer:
    """The response: classified where the request asks for it, compressed as Accept-Encoding says. Raises BadRequest."""
    if request.ranks:
        answer = await asyncio.get_running_loop().run_in_executor(hub.pool, compose_now, engine, request, outputs)
    else:
        answer = compose_now(engine, request, outputs)
    return await pack(hub, answer, accepted)


async def pack(hub: Hub, answer: Answer, accepted: bytes | None) -> Answer:
    """The response compressed as Accept-Encoding says, or as it is."""
    coding = choose_coding(accepted, len(answer.body))
    packed = None if coding is None else await encode(answer.body, coding, hub.pool)
    if coding is None or packed is None:
        return answer
    return answer._replace(body=packed, headers=[(b"content-encoding", coding.name.encode("ascii")), *answer.headers])


def compose_now(engine: Engine, request: InferRequest, outputs: Outputs) -> Answer:
    """The response as it is. Raises BadRequest."""
    body, json_length = build_response(engine.name, engine.version, request, outputs)
    if json_length is None:
        return Answer(body, [], b"application/json", engine)
    return Answer(body, [(HEADER_LENGTH, b"%d" % json_length)], b"application/octet-stream", engine)
