"""What the page /docs shows itself with, from memory: no address of a request is looked for among files."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI, Response
from starlette.exceptions import HTTPException
from starlette.routing import Mount

_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_KEPT = {"cache-control": "private, max-age=86400"}


def keep_assets(app: FastAPI, address: str) -> None:
    """Answer for the assets under an address in the place of the folder that is mounted there."""
    folder = Path(fastapi_offline.__file__).parent / "static"
    contents = {name: (folder / name).read_bytes() for name in _TYPES}
    routes = app.router.routes
    routes[:] = [route for route in routes if not (isinstance(route, Mount) and route.path == address)]

    @app.get(f"{address}/{{name}}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404)
        return Response(contents[name], media_type=_TYPES[name], headers=_KEPT)
