"""Which gRPC method does what. Every method of the official proto has an answer: what is not offered says so.

Source: grpc_service.proto of the Triton server, which is the protocol's own with Triton's extensions; the health
service is that of gRPC itself, which probes ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from service.errors import BadRequest, Fault, SlowClient, UnknownModel, Unsupported
from service.http.admin import check_unload, read_policy
from service.http.extensions import find_config, gather_statistics, refuse_logging, refuse_memory, refuse_tracing
from service.hub import Hub
from service.protocol.metadata import describe_model, describe_server
from service.rpc import stream
from service.rpc.inference import infer
from service.rpc.messages import parse_message, read_map
from service.rpc.statuses import code_of, message_of, metadata_of
from service.rpc.watching import ID_KEY, raw_headers, watched

Context = Any  # of grpc.aio, which ships no types
Document = dict[str, Any]
Messages = AsyncIterator[bytes]
Method = Callable[[Any], Awaitable[Document]]

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_INFER_PATH = f"/{_SERVICE.full_name}/ModelInfer"
_ADMIN = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
_OPEN = frozenset({"ServerLive", "ServerReady"})
_SLOWEST = 2**16  # bytes a second, as over REST
_MOMENT = 0.05  # seconds from the end of a client's messages until it is known whether the client left


class Service:
    """The methods of one server. closing: set when streams shall take no further message."""

    def __init__(self, hub: Hub, closing: asyncio.Event) -> None:
        self._hub = hub
        self._closing = closing
        # gRPC says nothing of a message before it has arrived. Those of inference may be of the largest size; the
        # others are short, and one of them wants no key: a stranger shall not hold a call for long.
        self._patience = hub.settings.body_timeout
        self._patience_for_tensors = self._patience + hub.settings.max_body_bytes / _SLOWEST
        self._methods: dict[str, Method] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    def handlers(self) -> Iterable[grpc.GenericRpcHandler]:
        """What a gRPC server is to be given."""
        methods = {method.name: self._unary(method) for method in _SERVICE.methods}
        methods["ModelInfer"] = grpc.stream_unary_rpc_method_handler(self._infer, response_serializer=_to_bytes)
        methods[stream.NAME] = grpc.stream_stream_rpc_method_handler(self._stream, response_serializer=_to_bytes)
        yield grpc.method_handlers_generic_handler(_SERVICE.full_name, methods)
        check = grpc.stream_unary_rpc_method_handler(self._check, response_serializer=_to_bytes)
        yield grpc.method_handlers_generic_handler(_HEALTH.full_name, {"Check": check})

    def _unary(self, described: Any) -> Any:
        """A handler that parses, answers and tells faults apart.

        It is one for streams, which looks the same from outside: so a key is asked for before the message is taken from
        the connection, and flow control keeps what a stranger sends out of memory.
        """
        name, method = described.name, self._methods.get(described.name)
        request, response = GetMessageClass(described.input_type), GetMessageClass(described.output_type)

        async def handle(messages: Messages, context: Context) -> Message:
            try:
                self._admit(name, context)
                if method is None:
                    raise _refusal(name)
                body = b"" if name in _OPEN else await self._only(messages, self._patience)
                found = await method(parse_message(body, request))
                return ParseDict(found, response())
            except Exception as problem:
                return await _abort(context, problem, name)

        return grpc.stream_unary_rpc_method_handler(handle, response_serializer=_to_bytes)

    def _admit(self, name: str, context: Context) -> None:
        """Check the key that a method needs, which comes in the metadata. Raises Unauthorized, Forbidden."""
        if name in _OPEN:
            return
        self._hub.check_key(raw_headers(context), "admin" if name in _ADMIN else "infer")

    async def _only(self, messages: Messages, patience: float) -> bytes:
        """The message of a call that has one. patience: seconds. Raises BadRequest for none, SlowClient."""
        try:
            async with asyncio.timeout(patience):
                async for message in messages:
                    return message
        except TimeoutError:
            raise SlowClient(f"no message arrived within {patience:g} s; send it faster") from None
        await asyncio.sleep(_MOMENT)  # one that leaves ends its messages too, and this task is cancelled only then
        raise BadRequest("the call ended without a message; expected one")

    # --------------------------------------------------------------------------------------------------- inference

    async def _infer(self, messages: Messages, context: Context) -> Message:
        headers = raw_headers(context)
        try:
            with watched(self._hub, _INFER_PATH, headers) as request_id:
                self._hub.check_key(headers, "infer")
                with self._hub.counting():
                    body = await self._only(messages, self._patience_for_tensors)
                engine, response = await infer(self._hub, body, context.time_remaining())
        except Exception as problem:
            return await _abort(context, problem, "ModelInfer")
        proof = [(name.decode("ascii"), value.decode("ascii")) for name, value in engine.headers]
        context.set_trailing_metadata((*proof, (ID_KEY, request_id)))
        return cast(Message, response)

    async def _stream(self, _: Any, context: Context) -> None:
        try:
            self._admit(stream.NAME, context)
        except Exception as problem:
            await _abort(context, problem, stream.NAME)
        await stream.Stream(self._hub, self._closing, context).run()

    # ------------------------------------------------------------------------------------------------------ health

    async def _live(self, _: Any) -> Document:
        return {"live": True}

    async def _ready(self, _: Any) -> Document:
        return {"ready": self._is_ready()}

    async def _model_ready(self, message: Any) -> Document:
        return {"ready": self._is_model_ready(message.name, message.version)}

    async def _check(self, messages: Messages, context: Context) -> Message:
        """gRPC's own health check: of the server with an empty name, of a model with the model's."""
        try:
            name = parse_message(await self._only(messages, self._patience), health_pb2.HealthCheckRequest).service
            known = name in ("", _SERVICE.full_name)
            if not known:
                self._admit("ModelReady", context)
            if not known and name not in self._hub.repository.entries:
                raise UnknownModel(f"there is no model {name!r:.80} here")
        except Exception as problem:
            return await _abort(context, problem, "Check")
        serving = self._is_ready() if known else self._is_model_ready(name, "")
        return health_pb2.HealthCheckResponse(status="SERVING" if serving else "NOT_SERVING")

    def _is_ready(self) -> bool:
        return self._hub.repository.is_ready and not self._hub.lifecycle.draining

    def _is_model_ready(self, name: str, version: str) -> bool:
        try:
            self._hub.repository.find(name, version or None)
        except Fault:
            return False
        return not self._hub.lifecycle.draining

    # -------------------------------------------------------------------------------------------------- extensions

    async def _metadata(self, _: Any) -> Document:
        return describe_server(self._hub)

    async def _model_metadata(self, message: Any) -> Document:
        return describe_model(self._hub, message.name, message.version or None)

    async def _config(self, message: Any) -> Document:
        return {"config": find_config(self._hub, message.name, message.version or None)}

    async def _statistics(self, message: Any) -> Document:
        return gather_statistics(self._hub, message.name or None, message.version or None)

    async def _index(self, message: Any) -> Document:
        return {"models": await self._hub.keeper.index(ready=message.ready)}

    async def _load(self, message: Any) -> Document:
        await self._hub.keeper.load(message.model_name, read_policy(read_map(message.parameters)))
        return {}

    async def _unload(self, message: Any) -> Document:
        parameters = read_map(message.parameters)
        check_unload(parameters)
        await self._hub.keeper.unload(message.model_name)
        return {}


def _to_bytes(message: Message) -> bytes:
    return cast(bytes, message.SerializeToString())


def _refusal(name: str) -> Fault:
    """Why a method is not offered."""
    kind = name.partition("SharedMemory")[0].lower()
    if kind != name.lower():
        return refuse_memory(kind)
    if name == "TraceSetting":
        return refuse_tracing()
    if name == "LogSettings":
        return refuse_logging()
    return Unsupported(f"the method {name} is not offered here")


async def _abort(context: Context, problem: Exception, name: str) -> NoReturn:
    await context.abort(code_of(problem), message_of(problem, name), metadata_of(problem))
    raise problem
