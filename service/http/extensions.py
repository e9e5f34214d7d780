"""The extensions of the protocol beside inference: configuration and statistics; and those that are not offered.

What is not offered is answered with 501 in the one shape, so that a client learns why instead of meeting a 404.
Source: the extensions' documents in the documentation of the Triton server.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from fastapi import APIRouter, Response

from service.engine import Engine
from service.errors import Unsupported
from service.http.openapi import ERRORS
from service.hub import Hub
from service.protocol.model_config import describe_config
from service.telemetry.stats import describe

_ALWAYS = ("binary_tensor_data", "classification", "model_configuration", "schedule_policy", "statistics")
_PROTOCOL: dict[str, Any] = {"tags": ["Open Inference Protocol v2"], "response_class": Response}
_MEMORIES = ("system", "cuda", "tpu")


def _example(what: str, value: Any) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": {"type": "object"}, "example": value}}
    return {200: {"description": what, "content": content}, **ERRORS}


_DURATION = {"count": 3, "ns": 412_000}
_STATISTICS = _example(
    "Counts and nanoseconds, summed over all workers",
    {
        "model_stats": [
            {
                "name": "digits-cnn",
                "version": "1",
                "last_inference": 1_700_000_000_000,
                "inference_count": 5,
                "execution_count": 3,
                "inference_stats": {"success": _DURATION, "queue": _DURATION, "compute_infer": _DURATION},
                "batch_stats": [{"batch_size": 1, "compute_infer": _DURATION}],
            }
        ]
    },
)
_CONFIG = _example(
    "The version as Triton would describe it",
    {
        "name": "digits-cnn",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 1024,
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [1, 8, 8]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}],
        "dynamic_batching": {"preferred_batch_size": [64], "max_queue_delay_microseconds": 0},
        "instance_group": [{"name": "digits-cnn_0", "kind": "KIND_CPU", "count": 2, "gpus": []}],
    },
)


def list_extensions(hub: Hub) -> list[str]:
    """Those that exist on this server: load and unload, and with them `model_repository`, take an admin key."""
    return [*_ALWAYS, *(["model_repository"] if hub.settings.admin_key_file is not None else [])]


def add_extensions(router: APIRouter, hub: Hub) -> None:
    """Their routes. They come before those of the models: `/v2/models/stats` is no model."""
    _add_statistics(router, hub)
    _add_configuration(router, hub)
    for path, fault in _not_offered():
        _add_refusal(router, path, fault)


def gather_statistics(hub: Hub, model: str | None, version: str | None) -> dict[str, Any]:
    """Triton's statistics of a version, of all versions of a model in service, or of every model.

    Raises UnknownModel, NotReady.
    """
    return {"model_stats": [describe(each.meter, each.name, each.version) for each in _engines(hub, model, version)]}


def find_config(hub: Hub, model: str, version: str | None) -> dict[str, Any]:
    """Triton's ModelConfig of a version, or of the newest in service. Raises UnknownModel, NotReady."""
    engine = hub.repository.find(model, version)
    return describe_config(engine, hub.keeper.policy_of(engine.name), hub.settings)


def refuse_memory(kind: str) -> Unsupported:
    """The fault of every request about shared memory."""
    return Unsupported(f"{kind} shared memory is not offered here; send tensors in the request, as binary data")


def refuse_setting(what: str, remedy: str) -> Unsupported:
    """The fault of every request that would read or change how the server traces or logs."""
    return Unsupported(f"{what} cannot be read or changed by request; {remedy}")


def refuse_tracing() -> Unsupported:
    """Traces are configured at start."""
    return refuse_setting("trace settings", "start the server with --otlp-endpoint to have traces")


def refuse_logging() -> Unsupported:
    """Logs are configured at start."""
    return refuse_setting("log settings", "start the server with --log-format or --access-log")


def _engines(hub: Hub, model: str | None, version: str | None) -> Iterable[Engine]:
    if model is None:
        return hub.repository.engines
    engine = hub.repository.find(model, version)
    return [engine] if version is not None else hub.repository.find_entry(model).engines.values()


def _add_statistics(router: APIRouter, hub: Hub) -> None:
    @router.get("/v2/models/stats", summary="Statistics of every model", responses=_STATISTICS, **_PROTOCOL)
    async def every() -> Response:
        return _json(gather_statistics(hub, None, None))

    @router.get("/v2/models/{model}/stats", summary="Statistics of a model", responses=_STATISTICS, **_PROTOCOL)
    async def of_model(model: str) -> Response:
        return _json(gather_statistics(hub, model, None))

    @router.get(
        "/v2/models/{model}/versions/{version}/stats",
        summary="Statistics of a version",
        responses=_STATISTICS,
        **_PROTOCOL,
    )
    async def of_version(model: str, version: str) -> Response:
        return _json(gather_statistics(hub, model, version))


def _add_configuration(router: APIRouter, hub: Hub) -> None:
    @router.get("/v2/models/{model}/config", summary="Triton's ModelConfig", responses=_CONFIG, **_PROTOCOL)
    async def of_model(model: str) -> Response:
        return _json(find_config(hub, model, None))

    @router.get(
        "/v2/models/{model}/versions/{version}/config",
        summary="Triton's ModelConfig of a version",
        responses=_CONFIG,
        **_PROTOCOL,
    )
    async def of_version(model: str, version: str) -> Response:
        return _json(find_config(hub, model, version))


def _not_offered() -> Iterable[tuple[str, Unsupported]]:
    for kind in _MEMORIES:
        for path in ("status", "unregister", "region/{region}/status", "region/{region}/{action}"):
            yield f"/v2/{kind}sharedmemory/{path}", refuse_memory(kind)
    yield "/v2/trace/setting", refuse_tracing()
    yield "/v2/models/{model}/trace/setting", refuse_tracing()
    yield "/v2/logging", refuse_logging()


def _add_refusal(router: APIRouter, path: str, fault: Unsupported) -> None:
    @router.api_route(path, methods=["GET", "POST"], include_in_schema=False, response_class=Response)
    async def refuse() -> Response:
        raise Unsupported(*fault.args)


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
