"""The model repository extension: the index, which is open, and load and unload, which want an admin key.

Source: the model repository extension of the Triton inference server. A load proves every version again; what Triton
lets a client put in the place of the model's own configuration and files would serve what nobody has proven, so it is
not offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from bnfold.errors import BnfoldError
from service.errors import BadRequest, Unsupported
from service.http.body import read_body
from service.http.openapi import INDEX, INDEX_BODY, LOAD, LOAD_BODY, UNLOAD_BODY
from service.hub import Hub
from service.protocol.requests import parse_json
from service.repository.policy import parse_policy

_POLICY = "version_policy"
_ADMIN: dict[str, Any] = {"tags": ["Model repository"], "response_class": Response}


def add_admin(router: APIRouter, hub: Hub) -> None:
    """The three routes."""

    @router.post(
        "/v2/repository/index", summary="Every version, its state, and why", responses=INDEX, openapi_extra=INDEX_BODY,
        **_ADMIN,
    )  # fmt: skip
    async def index(request: Request) -> Response:
        document = await _read(hub, request)
        ready = document.get("ready", False)
        if not isinstance(ready, bool):
            raise BadRequest(f"'ready' is {ready!r:.40}; expected true or false")
        return _json(await hub.keeper.index(ready=ready))

    @router.post(
        "/v2/repository/models/{model}/load", summary="Load a model, or load it again", responses=LOAD,
        openapi_extra=LOAD_BODY, **_ADMIN,
    )  # fmt: skip
    async def load(request: Request, model: str) -> Response:
        hub.check_key(request.scope["headers"], "admin")
        policy = read_policy(_parameters(await _read(hub, request)))
        await hub.keeper.load(model, policy)
        return _json({})

    @router.post(
        "/v2/repository/models/{model}/unload", summary="Take a model out of service", responses=LOAD,
        openapi_extra=UNLOAD_BODY, **_ADMIN,
    )  # fmt: skip
    async def unload(request: Request, model: str) -> Response:
        hub.check_key(request.scope["headers"], "admin")
        check_unload(_parameters(await _read(hub, request)))
        await hub.keeper.unload(model)
        return _json({})


def read_policy(parameters: dict[str, Any]) -> str:
    """The version policy that a load asks for, empty for the server's. Raises BadRequest, Unsupported."""
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise Unsupported(
                f"the parameter {name!r:.80} would serve what nobody has proven and is not offered; "
                "put a bundle into the repository, then load the model"
            )
    policy = parameters.pop(_POLICY, "")
    _refuse_unknown(parameters)
    if not isinstance(policy, str):
        raise BadRequest(f"{_POLICY!r} is no text; expected latest, latest:N, all or specific:1,3")
    try:
        return parse_policy(policy).text if policy else ""
    except BnfoldError as problem:
        raise BadRequest(str(problem)) from None


def check_unload(parameters: dict[str, Any]) -> None:
    """Raise BadRequest for parameters that an unload does not take."""
    dependents = parameters.pop("unload_dependents", False)  # there are no ensembles here, so nothing depends
    if not isinstance(dependents, bool):
        raise BadRequest(f"'unload_dependents' is {dependents!r:.40}; expected true or false")
    _refuse_unknown(parameters)


async def _read(hub: Hub, request: Request) -> dict[str, Any]:
    """The body as an object; nothing at all is an empty one."""
    with hub.budget.lease() as lease:
        body = await read_body(request.scope, request.receive, lease, hub.settings, hub.pool)
        document = parse_json(body, hub.limits.json_bytes) if body.strip() else {}
    if not isinstance(document, dict):
        raise BadRequest("the body is no JSON object; expected one, or nothing")
    return document


def _parameters(document: Mapping[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequest("'parameters' is no JSON object; expected one")
    return dict(parameters)


def _refuse_unknown(parameters: Mapping[str, Any]) -> None:
    for name in parameters:
        raise BadRequest(f"the parameter {name!r:.80} is not known here; leave it out")


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
