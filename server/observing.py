"""The outermost layer of the application: request ids, one count, one line of the log and one span per exchange."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import problem_of
from server.exchange import CLIENT_CLOSED_REQUEST, EXCHANGE, Exchange, Generated
from server.logs import bind
from server.metrics import Metrics
from server.tracing import NoSpan, Tracing

__all__ = ["HttpObserver", "RefusalObserver"]

REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# What is generated where, in the words of OpenTelemetry's conventions.
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
# Asked every few seconds by programs, while a model loads in vain; what changes is told by who changes it.
PROBES = frozenset({"/health", "/ready", "/metrics"})
# A browser asks for twenty of them behind each look at the page, which is told.
PARTS = "/playground/{name}"

logger = logging.getLogger("medusa.access")


def _generation_fields(generated: Generated) -> dict[str, str | int | float | None]:
    fields: dict[str, str | int | float | None] = {
        "finish_reason": generated.outcome,
        "prompt_tokens": generated.prompt_tokens,
        "cached_tokens": generated.cached_tokens,
        "tokens": generated.tokens,
        "steps": generated.steps,
        "tokens_per_step": generated.tokens_per_step,
    }
    for name, (begun, ended) in generated.phases.items():
        fields[f"{name}_s"] = round(ended - begun, 6)
    return fields


def _level(route: str, status: int, error: str | None) -> int:
    """How much an exchange is news."""
    if (route in PROBES and status in (200, 503)) or (route == PARTS and status in (200, 304)):
        return logging.DEBUG
    return logging.WARNING if status >= 500 or (status < 400 and error is not None) else logging.INFO


def _write_line(method: str, route: str, status: int, exchange: Exchange) -> None:
    """The line of the log; what clients can choose freely has no place in it."""
    fields: dict[str, str | int | float | None] = {
        "method": method,
        "route": route,
        "status": status,
        "duration_s": round(time.monotonic() - exchange.arrived, 6),
        "error": exchange.error,
    }
    if exchange.tell is not None:
        fields |= _generation_fields(exchange.tell())
    told = {name: value for name, value in fields.items() if value is not None}
    logger.log(_level(route, status, exchange.error), "request", extra=told)


class HttpObserver:
    """Gives every exchange its id and its time of arrival, and tells of it when it is over."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the exchange on and look at it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        exchange = Exchange(given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex, time.monotonic())
        scope[EXCHANGE] = exchange
        operation = OPERATIONS.get(scope["path"]) if scope["method"] == "POST" else None
        span = self._tracing.start(operation, headers, exchange) if operation is not None else NoSpan()
        # not taken back before the next request: what uvicorn says of a failure comes after us
        bind(request_id=exchange.request_id, **span.ids)
        status = CLIENT_CLOSED_REQUEST  # what is counted when there was nobody to answer

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = exchange.request_id
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.count_http(route, method, status)
            _write_line(method, route, status, exchange)
            span.end(exchange, route, status)


class RefusalObserver:
    """Counts and tells what the protocol refuses before there is an exchange."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __call__(self, error: Exception) -> None:
        """A connection was refused what it asked for."""
        problem = problem_of(error)
        self._metrics.count_http("unknown", "other", problem.status)
        if problem.rejected_as is not None:
            self._metrics.count_rejected(problem.rejected_as)
        fields = {"method": "other", "route": "unknown", "status": problem.status, "error": type(error).__name__}
        logger.info("request", extra=fields)
