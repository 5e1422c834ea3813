import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from server.exchange import Exchange
from server.otel import OtelTracing
from tests.server import fake_engine
from tests.server.running import running
from tests.server.test_exchange import generated

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "tell me nothing of this"


class Collector:
    """What an OpenTelemetry collector has received over HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def resource(self) -> dict[str, Any]:
        return attributes(self.requests[0].resource_spans[0].resource)

    @property
    def spans(self) -> list[SpanMessage]:
        resources = [resource for request in self.requests for resource in request.resource_spans]
        return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]

    def of_request(self, request_id: str) -> tuple[SpanMessage, dict[str, SpanMessage]]:
        """The span of a request and its children by name."""
        (span,) = [span for span in self.spans if attributes(span).get("medusa.request_id") == request_id]
        return span, {child.name: child for child in self.spans if child.parent_span_id == span.span_id}


def attributes(message: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {attribute.key: plain(attribute.value) for attribute in message.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            collector.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def completion(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": SECRET, **more}


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """What came of a handful of requests, each under a request id of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    with collecting() as collector:
        with running(folder, otlp_endpoint=collector.url + "/") as server:

            def ask(name: str, path: str = COMPLETIONS, **body: Any) -> None:
                headers = {"x-request-id": name, "traceparent": f"00-{TRACE}-{PARENT}-01"}
                server.post(path, {"model": "tiny", **body}, headers=headers)

            ask("whole", prompt=SECRET, temperature=0.5, max_tokens=7, stop=["zzz"], seed=1)
            ask("streamed", CHAT, messages=[{"role": "user", "content": SECRET}], stream=True)
            ask("two", prompt=SECRET, n=2)
            ask("failed", prompt=SECRET, seed=fake_engine.FAIL)
            ask("failed-in-stream", prompt=SECRET, seed=fake_engine.FAIL, stream=True)
            ask("refused", prompt="")
            body = completion(seed=fake_engine.ENDLESS, max_tokens=380, stream=True)
            leaving = {"x-request-id": "left", "traceparent": "nonsense"}
            with httpx.stream("POST", f"{server.url}{COMPLETIONS}", json=body, headers=leaving) as stream:
                next(stream.iter_lines())
            server.wait_for("medusa_requests_total endpoint=completions finish_reason=abort", 1)
            server.get("/v1/models", headers={"x-request-id": "models"})
        yield collector


def test_a_request_is_one_span_with_its_phases_inside(collector: Collector) -> None:
    for name in ("whole", "streamed", "two", "failed-in-stream", "left"):
        span, children = collector.of_request(name)
        phases = [children[phase] for phase in ("queue", "prefill", "decode")]

        assert len(children) == 3
        assert span.kind == SpanMessage.SPAN_KIND_SERVER
        assert {phase.trace_id for phase in phases} == {span.trace_id}
        stamps = [span.start_time_unix_nano, phases[0].start_time_unix_nano]
        for before, after in itertools.pairwise(phases):
            assert before.end_time_unix_nano == after.start_time_unix_nano
        stamps += [phase.end_time_unix_nano for phase in phases] + [span.end_time_unix_nano]
        assert stamps == sorted(stamps)
        assert abs(span.start_time_unix_nano / 1e9 - time.time()) < 600


def test_a_span_continues_the_clients_trace(collector: Collector) -> None:
    span, _ = collector.of_request("whole")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)

    alone, _ = collector.of_request("left")
    assert alone.trace_id.hex() != TRACE and alone.parent_span_id == b""


def test_a_span_is_described_in_the_words_of_the_conventions(collector: Collector) -> None:
    span, _ = collector.of_request("whole")
    told = attributes(span)

    assert span.name == "text_completion tiny"
    assert told.pop("gen_ai.usage.input_tokens") > 0
    assert told.pop("medusa.cached_tokens") >= 0
    assert told == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "medusa",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.seed": 1,
        "gen_ai.usage.output_tokens": 7,
        "medusa.request_id": "whole",
        "medusa.steps": 2,
        "medusa.tokens_per_step": 3.0,
        "medusa.acceptance_length": 2.0,
        "http.route": COMPLETIONS,
        "http.response.status_code": 200,
    }
    assert collector.of_request("streamed")[0].name == "chat tiny"


def test_several_answers_are_one_span(collector: Collector) -> None:
    told = attributes(collector.of_request("two")[0])
    alone = attributes(collector.of_request("streamed")[0])

    assert told["gen_ai.request.choice.count"] == 2
    assert told["gen_ai.usage.output_tokens"] > told["gen_ai.usage.input_tokens"] > 0
    assert alone["gen_ai.request.choice.count"] == 1


@pytest.mark.parametrize(
    ("name", "kind", "is_error"),
    [
        ("whole", None, False),
        ("failed", "EngineError", True),
        ("failed-in-stream", "EngineError", True),
        # no failure of the server
        ("refused", "InvalidParameter", False),
        ("left", "cancelled", False),
    ],
)
def test_a_failure_is_named_and_only_ours_is_an_error(
    collector: Collector, name: str, kind: str | None, is_error: bool
) -> None:
    span, _ = collector.of_request(name)

    assert attributes(span).get("error.type") == kind
    assert (span.status.code == 2) == is_error


def test_other_exchanges_have_no_span_and_no_span_tells_of_the_prompt(collector: Collector) -> None:
    assert "models" not in [attributes(span).get("medusa.request_id") for span in collector.spans]
    assert SECRET not in str(collector.requests) and "zzz" not in str(collector.requests)


def test_the_service_says_who_it_is(collector: Collector) -> None:
    assert collector.resource["service.name"] == "medusa-server"
    assert re.fullmatch(r"\d+\.\d+.*", collector.resource["service.version"])


def test_the_ids_of_a_span_are_those_that_arrive() -> None:
    with collecting() as collector:
        tracing = OtelTracing(collector.url + "/v1/traces")
        exchange = Exchange("one", time.monotonic(), tell=lambda: generated(11.0, 12.0))
        span = tracing.start("chat", {}, exchange)
        span.end(exchange, CHAT, 200)
        tracing.shutdown()
    (arrived,) = [found for found in collector.spans if found.name == "chat m"]

    assert span.ids == {"trace_id": arrived.trace_id.hex(), "span_id": arrived.span_id.hex()}


def test_a_clock_that_is_set_in_the_middle_of_a_request_turns_no_span_round() -> None:
    now, days = int(time.time() * 1e9), iter((0, -86400, 86400))
    with collecting() as collector:
        tracing = OtelTracing(collector.url, clock=lambda: now + next(days) * 10**9)
        for number in range(3):
            exchange = Exchange(str(number), time.monotonic())
            exchange.tell = partial(generated, exchange.arrived, exchange.arrived)
            tracing.start("chat", {}, exchange).end(exchange, CHAT, 200)
        tracing.shutdown()
    spans = collector.spans

    assert len([span for span in spans if span.name == "chat m"]) == 3
    assert all(
        span.start_time_unix_nano <= span.end_time_unix_nano for span in spans if span.name in ("chat m", "prefill")
    )


@pytest.mark.parametrize("is_hanging", [False, True])
def test_a_dead_collector_costs_a_warning_and_no_long_end(is_hanging: bool, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if is_hanging:
            listener.listen()
        tracing = OtelTracing(f"http://127.0.0.1:{listener.getsockname()[1]}")
        for number in range(3000):
            exchange = Exchange(str(number), time.monotonic())
            tracing.start("chat", {}, exchange).end(exchange, CHAT, 200)
        before = set(threading.enumerate())
        tracing.shutdown()
        # the SDK itself waits ten seconds for an answer and thirty for its end
        assert "traces-end" in [thread.name for thread in set(threading.enumerate()) - before]
        address = str(listener.getsockname()[1])
    complaints = [record for record in caplog.records if address in record.getMessage()]

    assert len(complaints) <= 1
