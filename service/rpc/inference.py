"""One inference over gRPC, as `service.http.infer` is one over REST: the same models, checks, queue and counts."""

from __future__ import annotations

import asyncio
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from service.engine import Engine
from service.hub import Hub
from service.rpc.messages import build_response, parse_message, read_request


async def infer(hub: Hub, body: bytes, seconds_left: float | None) -> tuple[Engine, Any]:
    """The engine and its ModelInferResponse. seconds_left: what the client's deadline leaves, None without one.

    Raises Fault. A client that leaves cancels this task, and with it what waits in the queue.
    """
    with hub.budget.lease() as lease:
        with hub.counting():
            lease.take(len(body))
            message = parse_message(body, pb.ModelInferRequest)
        return await answer(hub, message, seconds_left)


async def answer(hub: Hub, message: Any, seconds_left: float | None) -> tuple[Engine, Any]:
    """As `infer`, of a ModelInferRequest that the caller holds a lease for."""
    with hub.counting() as count:
        try:
            hub.check_open()
            engine = count.use(hub.repository.find(message.model_name, message.model_version or None))
            request = read_request(message, engine, hub.limits)
            timeout = min((each for each in (request.timeout, seconds_left) if each is not None), default=None)
            outputs = await hub.infer(engine, request.inputs, request.rows, timeout, None, count, request.priority)
            if request.ranks:
                loop = asyncio.get_running_loop()
                return engine, await loop.run_in_executor(hub.pool, build_response, engine, request, outputs)
            return engine, build_response(engine, request, outputs)
        except asyncio.CancelledError:
            count.fail("cancelled")
            raise
