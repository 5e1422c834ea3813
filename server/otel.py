"""Spans through OpenTelemetry's SDK; loaded only where a collector is named.

One server span for a request with queue, prefill and decode inside, in the words of the conventions for generative AI.
Nothing of prompt or answer is an attribute, stop strings neither.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.exchange import CLIENT_CLOSED_REQUEST, Exchange, Generated

__all__ = ["OtelSpan", "OtelTracing"]

TRACES_PATH = "/v1/traces"
PROVIDER = "medusa"
CANCELLED = "cancelled"
# What the end of the server waits for a collector.
SHUTDOWN_S = 1.5
# Who complains about a collector, once for every try.
COMPLAINING = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
SILENCE_S = 60.0

Value = str | int | float | list[str]


class _Seldom(logging.Filter):
    """Lets one complaint a minute pass."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -SILENCE_S

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._last < SILENCE_S:
            return False
        self._last = now
        return True


def _described(generated: Generated) -> dict[str, Value]:
    sampling = generated.sampling
    described: dict[str, Value | None] = {
        "gen_ai.request.model": generated.model,
        "gen_ai.response.model": generated.model,
        "gen_ai.response.finish_reasons": [generated.outcome],
        "gen_ai.request.choice.count": generated.choices,
        "gen_ai.request.max_tokens": generated.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.seed": sampling.seed if sampling.seed is not None and sampling.seed < 2**63 else None,
        "gen_ai.usage.input_tokens": generated.prompt_tokens,
        "gen_ai.usage.output_tokens": generated.tokens,
        "medusa.cached_tokens": generated.cached_tokens,
        "medusa.steps": generated.steps,
        "medusa.tokens_per_step": generated.tokens_per_step,
        "medusa.acceptance_length": generated.acceptance_length,
    }
    return {name: value for name, value in described.items() if value is not None}


class OtelSpan:
    """See RequestSpan."""

    def __init__(
        self, tracer: Tracer, operation: str, headers: Mapping[str, str], exchange: Exchange, clock: Callable[[], int]
    ) -> None:
        self._tracer = tracer
        self._operation = operation
        # once for all times of a request: a clock that is set meanwhile makes no span end before it began
        self._epoch_ns = clock() - time.monotonic_ns()
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "medusa.request_id": exchange.request_id,
        }
        self._span = tracer.start_span(
            operation,
            context=TraceContextTextMapPropagator().extract(headers, Context()),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=self._at(exchange.arrived),
        )

    @property
    def ids(self) -> Mapping[str, str]:
        """See RequestSpan.ids."""
        context = self._span.get_span_context()
        return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}

    def end(self, exchange: Exchange, route: str, status: int) -> None:
        """See RequestSpan.end."""
        generated = exchange.tell() if exchange.tell is not None else None
        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if generated is not None:
            self._span.update_name(f"{self._operation} {generated.model}")
            self._span.set_attributes(_described(generated))
            for name, (begun, ended) in generated.phases.items():
                child = self._tracer.start_span(name, set_span_in_context(self._span), start_time=self._at(begun))
                child.end(self._at(ended))
        self._judge(exchange.error, status, generated)
        self._span.end(self._at(time.monotonic()))

    def _judge(self, error: str | None, status: int, generated: Generated | None) -> None:
        """A failure is ours when it is no fault of the request and the client has not left."""
        outcome = generated.outcome if generated is not None else None
        if status == CLIENT_CLOSED_REQUEST or (error is None and outcome == "abort"):
            self._span.set_attribute("error.type", CANCELLED)
        elif error is not None or status >= 400:
            kind = error if error is not None else str(status)
            self._span.set_attribute("error.type", kind)
            if not 400 <= status < 500:
                self._span.set_status(Status(StatusCode.ERROR, kind))

    def _at(self, monotonic_s: float) -> int:
        """Unix time in nanoseconds."""
        return self._epoch_ns + int(monotonic_s * 1e9)


class OtelTracing:
    """See Tracing; spans wait in a bounded queue and leave in a thread of the SDK's own.

    endpoint: base URL of the collector; None leaves it, as all else, to OpenTelemetry's variables.
    clock:    Unix time in nanoseconds.
    """

    def __init__(self, endpoint: str | None, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        resource = Resource.create({SERVICE_VERSION: metadata.version("medusa-server")})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "medusa-server"}))
        whole = None if endpoint is None else endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH
        seldom = _Seldom()
        for name in COMPLAINING:
            logging.getLogger(name).addFilter(seldom)
        # it is ended with the server, in a time of our choice
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=whole)))
        self._tracer = self._provider.get_tracer("medusa", metadata.version("medusa-server"))

    def start(self, operation: str, headers: Mapping[str, str], exchange: Exchange) -> OtelSpan:
        """See Tracing.start."""
        return OtelSpan(self._tracer, operation, headers, exchange, self._clock)

    def shutdown(self) -> None:
        """See Tracing.shutdown; the SDK itself would wait half a minute for a collector that hangs."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        ending.start()
        ending.join(SHUTDOWN_S)
