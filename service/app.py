"""The app factory: FastAPI for everything, with inference as raw ASGI in front of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

import bnfold
from service.errors import Fault
from service.http.answers import error_body, fault_headers, status_of
from service.http.assets import keep_assets
from service.http.body import Budget
from service.http.document import describe_app
from service.http.front import Front
from service.http.routes import build_router
from service.hub import Hub
from service.keys import Keys
from service.processes.lifecycle import Lifecycle
from service.processes.peers import Crew, Peers, describe_worker
from service.protocol.requests import Limits
from service.queueing.batcher import Batcher
from service.repository import load_repository
from service.repository.keeper import Keeper
from service.repository.proving import Workshop
from service.repository.shown import Shown
from service.repository.state import DesiredState
from service.rpc.door import check_grpc, grpc_door
from service.settings import Settings
from service.telemetry.metrics import open_metrics
from service.telemetry.traces import open_watch

_logger = logging.getLogger(__name__)

_COLLECT_AFTER = 10_000  # objects; Python's own 700 take 0.7 % of the time of small requests
_SWITCH_INTERVAL = 1e-3  # seconds; measured on small JSON requests: as cheap as 5 ms, p99.9 13 ms instead of up to 200
_MOST_DECODERS = 4  # a picture at the cap of pixels takes 128 MiB while it is decoded

_ASSETS = "/docs-assets"

_DESCRIPTION = (
    "Serves networks whose batch norms are folded, each proven on this host before its first request. "
    "Every prediction carries its proof: `bnfold-model-version`, `bnfold-model-digest`, `bnfold-provider`."
)


def create_app(settings: Settings, crew: Crew | None = None) -> FastAPI:
    """Load the repository and build the app; `app.state.hub` has its parts. crew: its place among several workers.

    Raises BnfoldError when there is nothing to serve, nothing is proven, or the device does not start.
    """
    check_grpc(settings)
    hub = build_hub(settings, crew)
    app: FastAPI = FastAPIOffline(
        title="bnfold",
        version=bnfold.__version__,
        description=_DESCRIPTION,
        docs_url="/docs",
        redoc_url=None,
        static_url=_ASSETS,
        redirect_slashes=False,
        lifespan=partial(_lifespan, hub),
    )
    keep_assets(app, _ASSETS)
    app.state.hub = hub
    app.include_router(build_router(hub))
    app.add_middleware(Front, hub=hub)
    _answer_errors(app)
    describe_app(app)
    return app


def build_hub(settings: Settings, crew: Crew | None = None) -> Hub:
    """The parts of one server. Raises BnfoldError as `create_app` does."""
    keys = Keys.open(settings)
    watch = open_watch(settings)
    metrics = open_metrics(crew, settings.max_request_rows)
    desired, lifecycle = DesiredState(settings.state_dir), Lifecycle()
    look = desired.look()
    repository = load_repository(settings, metrics, look.wishes)
    batcher = Batcher(
        workers=settings.thread_count,
        max_batch_rows=settings.max_batch_rows,
        max_queue_rows=settings.max_queue_rows,
        max_delay=settings.max_delay,
        max_inline=0.0 if repository.device == "cuda" else settings.max_inline,
    )
    shop = Workshop(settings, repository.device, metrics)
    return Hub(
        settings=settings,
        limits=Limits(
            rows=settings.max_request_rows,
            json_bytes=settings.max_json_bytes,
            json_values=settings.max_json_values,
            pixels=settings.max_pixels,
        ),
        repository=repository,
        batcher=batcher,
        budget=Budget(settings.max_memory_bytes),
        pool=ThreadPoolExecutor(min(settings.thread_count, _MOST_DECODERS), thread_name_prefix="bnfold-decode"),
        metrics=metrics,
        lifecycle=lifecycle,
        keys=keys,
        peers=Peers(crew, partial(describe_worker, crew, repository, metrics, lifecycle)),
        keeper=Keeper(repository, shop, desired, look, Shown(metrics, batcher), lifecycle),
        watch=watch,
    )


def _tune() -> None:
    """Let Python get out of the way of many small requests.

    What the load has built lives as long as the process, so the collector need not look at it again and again. A worker
    that comes out of the runtime waits for the interpreter as long as the switch interval: 5 ms as it is set.
    """
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    sys.setswitchinterval(_SWITCH_INTERVAL)


@asynccontextmanager
async def _lifespan(hub: Hub, app: FastAPI) -> AsyncGenerator[None, None]:
    await hub.peers.start()
    _tune()
    hub.batcher.start()
    hub.keeper.start()
    try:
        async with grpc_door(hub) as port:
            app.state.grpc_port = port
            yield
    finally:
        hub.lifecycle.close()
        await hub.peers.stop()
        await hub.keeper.stop()
        await hub.batcher.stop()
        hub.pool.shutdown(wait=False, cancel_futures=True)
        if hub.watch is not None:
            await asyncio.to_thread(hub.watch.close)


def _answer_errors(app: FastAPI) -> None:
    """Give every error the one shape, those of the framework too."""

    @app.exception_handler(Fault)
    async def fault(_: Request, problem: Fault) -> Response:
        headers = {name.decode("ascii"): value.decode("ascii") for name, value in fault_headers(problem)}
        return _error(str(problem), status_of(problem), headers)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, problem: HTTPException) -> Response:
        message = str(problem.detail)
        if problem.status_code == 404:
            message = f"there is nothing at {request.url.path!r:.120}; /docs lists what there is"
        if problem.status_code == 405:
            message = f"{request.url.path!r:.120} does not take {request.method}"
        return _error(message, problem.status_code, dict(problem.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def validation(_: Request, problem: RequestValidationError) -> Response:
        found = problem.errors()[0]
        where = " ".join(str(part) for part in found["loc"])
        return _error(f"the request is not valid: {where}: {found['msg']}", 400)


def _error(message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(error_body(message), status_code=status, headers=headers, media_type="application/json")
