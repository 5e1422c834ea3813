"""The application: routes, middleware and error handlers put together; loads and reads nothing by itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import metadata

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware

from medusa_core.errors import MedusaError
from medusa_core.text import TextCodec
from server.answering import Answering, ClientGone, ServedNames
from server.auth import ApiKeyGuard, open_paths
from server.body_guard import BodyGuard
from server.errors import PROBLEMS, error_response, problem_of
from server.exchange import CLIENT_CLOSED_REQUEST, exchange_of
from server.grammars import Grammars
from server.http_protocol import MAX_HEADER_BYTES, ConnectionLimits, GuardedProtocol
from server.logs import rendering_of
from server.metrics import Metrics
from server.observing import HttpObserver, RefusalObserver
from server.openapi import describe
from server.rate_limit import RateLimit
from server.routes.chat import chat_router
from server.routes.completions import completions_router
from server.routes.models import models_router
from server.routes.ops import ops_router
from server.routes.playground import playground_router
from server.routes.tokenize import tokenize_router
from server.settings import Settings
from server.streaming import let_streams_finish
from server.tracing import Tracing
from server.worker.client import WorkerClient
from server.worker.messages import Load

__all__ = ["create_app", "create_worker", "http_config"]

EXPOSED_HEADERS = ("x-request-id", "x-ignored-fields", "retry-after", "x-should-retry")


def http_config(app: FastAPI, settings: Settings, metrics: Metrics) -> uvicorn.Config:
    """How uvicorn is to serve the application."""
    limits = ConnectionLimits(settings.header_timeout_s, settings.send_timeout_s, settings.max_connections)
    return uvicorn.Config(
        app,
        # uvicorn would take httptools, which knows no limit for headers, as soon as anything installs it
        http=partial(GuardedProtocol, limits, RefusalObserver(metrics)),  # type: ignore[arg-type]
        timeout_keep_alive=settings.keep_alive_s,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )


def create_worker(settings: Settings, metrics: Metrics, factory: str) -> WorkerClient:
    """The client of a worker that will load what the settings say; not started yet.

    factory: `package.module:name` of the engine factory the worker calls.
    """
    load = Load(
        model=settings.model,
        heads=settings.heads,
        device=settings.device,
        dtype=settings.dtype,
        max_context=settings.max_context,
        tree_nodes=settings.tree_nodes,
        tree=settings.tree,
        prompt_lookup=settings.prompt_lookup,
        draft_vocabulary=settings.draft_vocabulary,
        recycling=settings.recycling,
        prefix_cache=settings.prefix_cache,
        num_threads=settings.threads,
        compile=settings.compile,
        quantize=settings.quantize,
        adapter=settings.adapter,
        runner=settings.runner,
        attention=settings.attention,
        record_prompts=settings.record_prompts,
        compile_steps=settings.compile_steps,
        int8_heads=settings.int8_heads,
        delivery_ms=settings.delivery_ms,
        log_level=settings.log_level,
        log_format=rendering_of(settings.log_format),
    )
    return WorkerClient(load, settings.queue_size, metrics, settings.step_timeout_s, factory)


def create_app(
    settings: Settings, worker: WorkerClient, codec: TextCodec, metrics: Metrics, tracing: Tracing
) -> FastAPI:
    """The ASGI application over a worker, which it starts and stops with itself."""
    let_streams_finish()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await worker.start()
        try:
            yield
        finally:
            await worker.stop()
            await asyncio.to_thread(tracing.shutdown)

    def count(error: Exception) -> None:
        rejected_as = problem_of(error).rejected_as
        if rejected_as is not None:
            metrics.count_rejected(rejected_as)

    def refuse(request: Request, error: Exception) -> Response:
        # a probe that hears "not ready" was not turned away
        if request.method == "POST":
            count(error)
        exchange_of(request.scope).error = type(error).__name__
        return error_response(error, asked=f"{request.method} {request.scope['path'][:100]}")

    # the pages of the interface bring their scripts along: not every GPU host reaches a content network
    app = FastAPIOffline(
        title="Medusa Server",
        version=metadata.version("medusa-server"),
        lifespan=lifespan,
        # a redirect would name whatever host the client names, and http behind a proxy that speaks TLS
        redirect_slashes=False,
    )
    for cls in (MedusaError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(cls, refuse)
    app.add_exception_handler(ClientGone, lambda request, error: Response(status_code=CLIENT_CLOSED_REQUEST))
    # innermost first
    app.add_middleware(
        BodyGuard, max_body_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s, on_refused=count
    )
    if settings.rate_limit is not None:
        app.add_middleware(RateLimit, per_minute=settings.rate_limit, on_refused=count)
    keys = [key.get_secret_value() for key in settings.api_key]
    open_to_all = open_paths(settings.open_metrics, settings.open_docs, settings.playground)
    app.add_middleware(ApiKeyGuard, keys=keys, open_paths=open_to_all, on_refused=count)
    # the framework's own stands outside of what follows, where an answer gets no id and no origin
    app.add_middleware(ServerErrorMiddleware, handler=refuse)
    if settings.cors_origins:
        # outside the guards: a preflight brings no key, and a page may only read refusals that name its origin
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(HttpObserver, metrics=metrics, tracing=tracing)

    created, timeout_s = int(time.time()), settings.request_timeout_s
    names = ServedNames(settings.served_names, takes_any=settings.any_model_name)
    answering = Answering(worker, codec, Grammars(codec), metrics, names, created, timeout_s)
    app.include_router(chat_router(answering))
    app.include_router(completions_router(answering))
    app.include_router(models_router(answering))
    app.include_router(tokenize_router(answering))
    app.include_router(ops_router(worker, metrics))
    if settings.playground:
        app.include_router(playground_router())
    statuses = {200, *(problem.status for problem in PROBLEMS.values())}
    for route in ("/v1/chat/completions", "/v1/completions"):
        metrics.expect_http(route, "POST", sorted(statuses))
    describe(app, open_to_all, needs_key=bool(keys))
    return app
