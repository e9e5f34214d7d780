"""Every endpoint but inference: health, metadata, proof, /predict, /metrics."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from service.engine import Engine
from service.errors import BadRequest, Expired, NotReady
from service.http.admin import add_admin
from service.http.body import read_body
from service.http.extensions import add_extensions
from service.http.openapi import LIVE, METADATA, METRICS, MODEL_READY, PARITY, PREDICT, PREDICT_BODY, READY, SERVER
from service.http.predict import DEFAULT_TOP, describe, read_inputs
from service.hub import Hub
from service.processes.peers import describe_crew
from service.protocol.metadata import describe_model, describe_server
from service.telemetry.metrics import CONTENT_TYPE

_STOPPING = "the server is stopping"
_PROTOCOL: dict[str, Any] = {"tags": ["Open Inference Protocol v2"], "response_class": Response}

Top = Annotated[int, Query(ge=1, le=1000, description="how many classes to name, the likeliest first")]


def build_router(hub: Hub) -> APIRouter:
    """The routes of one server."""
    router = APIRouter()
    _add_server(router, hub)
    add_extensions(router, hub)
    _add_models(router, hub)
    _add_people(router, hub)
    add_admin(router, hub)
    return router


def _add_server(router: APIRouter, hub: Hub) -> None:
    @router.get("/v2", summary="Server metadata", responses=SERVER, **_PROTOCOL)
    async def server() -> Response:
        return _json(describe_server(hub))

    @router.get("/v2/health/live", summary="Whether the process answers", responses=LIVE, **_PROTOCOL)
    async def live() -> Response:
        return _json({"live": True})

    @router.get("/v2/health/ready", summary="Whether every model has a proven version", responses=READY, **_PROTOCOL)
    async def ready(request: Request) -> Response:
        draining = hub.lifecycle.draining
        fault = _STOPPING if draining else hub.repository.unreadiness
        if not hub.keys.knows(request.scope["headers"]):  # a probe needs no key, and learns no more than it asks for
            return _health(fault, {})
        models = [entry.to_dict() for entry in hub.repository.entries.values()]
        return _health(fault, {"draining": draining, "models": models, **await describe_crew(hub.peers)})

    @router.get("/metrics", summary="Prometheus metrics", tags=["Watching"], response_class=Response, responses=METRICS)
    async def metrics() -> Response:
        others = [state["gauges"] for state in await hub.peers.others()]
        page = await asyncio.to_thread(hub.metrics.page, others)
        return Response(page, headers={"content-type": CONTENT_TYPE.decode("ascii")})


def _add_models(router: APIRouter, hub: Hub) -> None:
    repository = hub.repository

    @router.get("/v2/models/{model}", summary="Model metadata", responses=METADATA, **_PROTOCOL)
    async def metadata(model: str) -> Response:
        return _json(describe_model(hub, model))

    @router.get("/v2/models/{model}/versions/{version}", summary="Version metadata", responses=METADATA, **_PROTOCOL)
    async def version_metadata(model: str, version: str) -> Response:
        return _json(describe_model(hub, model, version))

    @router.get("/v2/models/{model}/ready", summary="Whether a model is served", responses=MODEL_READY, **_PROTOCOL)
    async def model_ready(model: str) -> Response:
        return _model_health(repository.find(model), hub)

    @router.get(
        "/v2/models/{model}/versions/{version}/ready",
        summary="Whether a version is served",
        responses=MODEL_READY,
        **_PROTOCOL,
    )
    async def version_ready(model: str, version: str) -> Response:
        return _model_health(repository.find(model, version), hub)

    @router.get(
        "/v2/models/{model}/parity",
        summary="The proof: what the load gate found on this host, why versions were refused, and parity.json",
        responses=PARITY,
        tags=["Proof"],
        response_class=Response,
    )
    async def parity(model: str) -> Response:
        return _json(repository.find_entry(model).proof())


def _add_people(router: APIRouter, hub: Hub) -> None:
    people: dict[str, Any] = {
        "tags": ["For people"],
        "response_class": Response,
        "responses": PREDICT,
        "openapi_extra": PREDICT_BODY,
    }

    @router.post("/predict", summary="Predict with the one model that is here", **people)
    async def predict(request: Request, top: Top = DEFAULT_TOP) -> Response:
        return await _predict(hub, request, None, top)

    @router.post("/models/{model}/predict", summary="Predict with a model", **people)
    async def predict_with(request: Request, model: str, top: Top = DEFAULT_TOP) -> Response:
        return await _predict(hub, request, model, top)


async def _predict(hub: Hub, request: Request, model: str | None, top: int) -> Response:
    with hub.counting() as count, hub.budget.lease() as lease:
        hub.check_open()
        engine = count.use(_only_engine(hub) if model is None else hub.repository.find(model))
        body = await read_body(request.scope, request.receive, lease, hub.settings, hub.pool)
        content_type = request.headers.get("content-type", "")
        try:
            async with asyncio.timeout(hub.settings.request_timeout):
                inputs, rows = await read_inputs(body, content_type, engine, hub.limits, hub.pool)
        except TimeoutError:
            raise Expired("the pictures could not be decoded in time; try again") from None
        outputs = await hub.infer(engine, inputs, rows, None, request.receive, count)
        document = {
            "model": engine.name,
            "version": engine.version,
            "output_kind": engine.manifest.output_kind,
            "predictions": describe(engine, outputs, top),
        }
        response = _json(document)
    response.headers.update({name.decode("ascii"): value.decode("ascii") for name, value in engine.headers})
    return response


def _only_engine(hub: Hub) -> Engine:
    names = list(hub.repository.entries)
    if len(names) > 1:
        paths = ", ".join(f"/models/{name}/predict" for name in names)
        raise BadRequest(f"there are {len(names)} models here; use one of {paths}")
    if not names:
        raise NotReady("no model is loaded here; try again when one is")
    return hub.repository.find(names[0])


def _model_health(engine: Engine, hub: Hub) -> Response:
    fault = _STOPPING if hub.lifecycle.draining else None
    return _health(fault, {"name": engine.name, "version": engine.version})


def _health(fault: str | None, details: dict[str, Any]) -> Response:
    """200, or 503 with the fault as an error beside the details."""
    if fault is None:
        return _json({"ready": True, **details})
    return _json({"error": fault, "ready": False, **details}, status=503, headers={"retry-after": "1"})


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, headers=headers, media_type="application/json")
