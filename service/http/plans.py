"""What clients send again and again is understood once: the JSON head of a binary request, and that of its response.

A client sends the same head with every input of the same shape, and reading it costs more than all the rest of the
request. Only heads that were found right are kept, and only those without data in the JSON: such a head says the same
each time. A head without an id is known by its bytes, one with an id by what it says beside that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from service.protocol.requests import InferRequest, Signature, Wanted
from service.protocol.tensors import Array, Port, read_blob

_MOST_PLANS = 256  # of one model
_LONGEST = 4 * 2**10  # bytes of a head
_MOST_HEADS = 64  # of one plan

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """A head that was understood.

    parts: the inputs in the order of the model, each with its place among the `size` bytes behind the head.
    """

    parts: tuple[tuple[str, Port, tuple[int, ...], int, int], ...]
    size: int
    rows: int
    outputs: tuple[Wanted, ...]
    timeout: float | None
    priority: int
    heads: dict[Shapes, bytes] | None


def find_plan(signature: Signature, key: bytes | None, size: int) -> Plan | None:
    """What is known of a head that `size` bytes follow. key: of `plan_key`, or the head itself."""
    plan: Plan | None = None if key is None else signature.plans.get(key)
    return plan if plan is not None and plan.size == size else None


def plan_key(document: Mapping[str, Any], head: bytes) -> bytes | None:
    """How a head is known; None for one that is not to be kept. document: what it says."""
    if len(head) > _LONGEST:
        return None
    if not document.get("id"):
        return head
    try:  # no head begins with a zero byte, and JSON values that differ are written differently
        return b"\0" + orjson.dumps({name: value for name, value in document.items() if name != "id"})
    except orjson.JSONEncodeError:  # it reads what is nested more deeply than what it writes
        return None


def keep_plan(
    signature: Signature, key: bytes | None, request: InferRequest, spans: Mapping[str, tuple[int, int]]
) -> None:
    """Remember what a head says. spans: where the blob of each input lies behind it."""
    if key is None:
        return
    ports = signature.inputs_by_name
    plain = all(wanted.binary and not wanted.classes for wanted in request.outputs)
    plans = signature.plans
    if len(plans) >= _MOST_PLANS:
        del plans[next(iter(plans))]  # the oldest: strangers choose the heads
    plans[key] = Plan(
        parts=tuple((name, ports[name], array.shape, *spans[name]) for name, array in request.inputs.items()),
        size=max(end for _, end in spans.values()),
        rows=request.rows,
        outputs=request.outputs,
        timeout=request.timeout,
        priority=request.priority,
        heads={} if plain else None,
    )


def follow(plan: Plan, body: bytes, start: int, identity: str | None = None) -> InferRequest:
    """The request of a body whose head is known but for its id. start: of the blobs. Raises BadRequest for those."""
    view = memoryview(body)
    arrays = {name: read_blob(view[start + at : start + end], port, shape) for name, port, shape, at, end in plan.parts}
    return fill(plan, arrays, identity)


def fill(plan: Plan, arrays: dict[str, Array], identity: str | None) -> InferRequest:
    """The request of a head that is known but for its id, with its arrays."""
    return InferRequest(identity or None, arrays, plan.rows, plan.outputs, plan.timeout, plan.priority, plan.heads)


def keep_head(request: InferRequest, outputs: Mapping[str, Array], head: bytes) -> None:
    """Remember the JSON of a response, without an id."""
    heads = request.heads
    if heads is not None and len(heads) < _MOST_HEADS:
        heads[_shapes(request, outputs)] = head


def answer_alike(request: InferRequest, outputs: Mapping[str, Array]) -> tuple[bytes, int] | None:
    """The body of a response whose JSON is known, and the length of that; None where it is not."""
    head = request.heads and request.heads.get(_shapes(request, outputs))
    if not head:
        return None
    blobs = [outputs[wanted.port.name].astype(wanted.port.dtype, copy=False).tobytes() for wanted in request.outputs]
    head = with_id(head, request.id)
    return b"".join([head, *blobs]), len(head)


def with_id(head: bytes, identity: str | None) -> bytes:
    """The JSON of a response with the id of its request."""
    return head if identity is None else b'%b,"id":%b}' % (head[:-1], orjson.dumps(identity))


def _shapes(request: InferRequest, outputs: Mapping[str, Array]) -> Shapes:
    return tuple([outputs[wanted.port.name].shape for wanted in request.outputs])
