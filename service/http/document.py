"""The OpenAPI document: what the endpoints say, inference, which FastAPI does not see, keys, and examples that work."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI

from service.engine import Engine
from service.http.examples import choose_engine, infer_example, predict_example
from service.http.openapi import ERROR, INFER, PREDICT, Responses, error
from service.hub import Hub
from service.keys import FREE
from service.settings import Settings

_AUTHORITIES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "a key of --api-key-file or --admin-key-file"},
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "the same key, in a header of its own",
    },
}
_ASKED: list[dict[str, list[str]]] = [{name: []} for name in _AUTHORITIES]
_ADMIN_PATHS = "/v2/repository/models/"
_KEY_ERRORS: Responses = {
    401: error(
        "No key, or none that is known here", "this server asks for a key; send it as Authorization: Bearer KEY"
    ),
    403: error("A key that may not do this", "this key may infer, but not load and unload; send an admin key"),
}
_ALONE = "/predict"  # only where there is one model


def describe_app(app: FastAPI) -> None:
    """Add to what the app says of itself: inference, errors, keys, and examples of a model that is served.

    It is put together once, and the examples again when other models are served.
    """
    describe = app.openapi
    hub: Hub = app.state.hub
    kept: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        served = [(engine.label, engine.digest) for engine in hub.repository.engines]
        if kept.get("served") != served:
            kept.setdefault("frame", _frame(describe(), hub.settings))
            document = copy.deepcopy(kept["frame"])
            engine = choose_engine(hub)
            if engine is not None:
                _fill(document, engine, alone=len(hub.repository.entries) == 1)
            kept.update(served=served, document=document)
        return dict(kept["document"])

    app.openapi = openapi  # type: ignore[method-assign]


def _frame(document: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The document without examples of a model."""
    document = copy.deepcopy(document)
    length = _parameter("Inference-Header-Content-Length", "header", "integer", required=False)
    model, version = _parameter("model", "path", "string"), _parameter("version", "path", "string")
    for path, parameters in (
        ("/v2/models/{model}/infer", [model, length]),
        ("/v2/models/{model}/versions/{version}/infer", [model, version, length]),
    ):
        document["paths"][path] = {"post": {**INFER, "parameters": parameters}}
    document["components"] = {"schemas": {"Error": ERROR}}
    if settings.api_key_file is not None or settings.admin_key_file is not None:
        document["components"]["securitySchemes"] = _AUTHORITIES
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            responses = operation["responses"]
            responses.pop("422", None)  # what is not valid is answered with 400
            if method == "post":
                for status in (400, 408, 413, 415, 503):
                    responses.setdefault(str(status), PREDICT[status])
            wants_admin = path.startswith(_ADMIN_PATHS) and settings.admin_key_file is not None
            if wants_admin or (settings.api_key_file is not None and path not in FREE):
                operation["security"] = _ASKED
                responses["401"] = _KEY_ERRORS[401]
                if wants_admin:
                    responses["403"] = _KEY_ERRORS[403]
    return document


def _fill(document: dict[str, Any], engine: Engine, *, alone: bool) -> None:
    """Put one model's name and numbers into the examples; alone: whether it is the only one here."""
    if not alone:
        document["paths"].pop(_ALONE, None)
    values = {"model": engine.name, "version": engine.version}
    bodies = {"infer": infer_example(engine), "predict": predict_example(engine)}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["example"] = values[parameter["name"]]
            body = bodies.get(path.rpartition("/")[2])
            if body is not None:
                operation["requestBody"]["content"]["application/json"]["example"] = body


def _parameter(name: str, where: str, kind: str, *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": {"type": kind}}
