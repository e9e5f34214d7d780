"""ModelStreamInfer: many requests on one call, each answered when it is done, with its id.

A request that fails is answered in the stream, which goes on. Source: grpc_service.proto of the Triton server, whose
server also marks the last response to each request with the parameter `triton_final_response`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from service.hub import Hub
from service.rpc.inference import answer
from service.rpc.messages import parse_message
from service.rpc.statuses import message_of
from service.rpc.watching import raw_headers, watched

NAME = "ModelStreamInfer"
_PATH = f"/{pb.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/{NAME}"
_MOST = 64  # requests of one stream at a time; the next is read when one of them is answered


class Stream:
    """One call. closing: set when no further message shall be read; what was read is answered, then the call ends."""

    def __init__(self, hub: Hub, closing: asyncio.Event, context: Any) -> None:
        self._hub = hub
        self._closing = closing
        self._context = context
        self._headers = raw_headers(context)
        self._slots = asyncio.Semaphore(_MOST)
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Answer until the client has sent its last message. Cancelled when the client leaves."""
        async with asyncio.TaskGroup() as group:
            async for body in self._read():
                await self._slots.acquire()
                group.create_task(self._answer(body))

    async def _read(self) -> AsyncIterator[bytes]:
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            while not closing.done():
                reading = asyncio.ensure_future(self._context.read())
                try:
                    await asyncio.wait((reading, closing), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not reading.done():
                        reading.cancel()
                if not reading.done() or (body := reading.result()) is grpc.aio.EOF:
                    return
                yield body
        finally:
            closing.cancel()

    async def _answer(self, body: bytes) -> None:
        try:
            with self._hub.budget.lease() as lease:
                response = await self._respond(body, lease)
            async with self._writing:
                await self._context.write(response)
        finally:
            self._slots.release()

    async def _respond(self, body: bytes, lease: Any) -> Any:
        identity = ""
        try:
            self._hub.check_key(self._headers, "infer")  # a stream may outlive the key that it was opened with
            with self._hub.counting():
                lease.take(len(body))
                message = parse_message(body, pb.ModelInferRequest)
            identity = message.id
            with watched(self._hub, _PATH, self._headers):
                _, found = await answer(self._hub, message, self._context.time_remaining())
        except Exception as problem:
            failed = pb.ModelInferResponse(id=identity)
            return pb.ModelStreamInferResponse(error_message=message_of(problem, NAME), infer_response=failed)
        found.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=found)
