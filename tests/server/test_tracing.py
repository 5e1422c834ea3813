import subprocess
import sys
from pathlib import Path

import pytest

from medusa_core.errors import ConfigurationError
from server.exchange import Exchange
from server.tracing import NoTracing, create_tracing

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("endpoint", "environ"),
    [
        (None, {}),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_TRACES_EXPORTER": "none"}),
        ("http://localhost:4318", {"OTEL_SDK_DISABLED": "true"}),
    ],
)
def test_without_a_collector_there_is_no_tracing(endpoint: str | None, environ: dict[str, str]) -> None:
    tracing = create_tracing(endpoint, environ)
    assert isinstance(tracing, NoTracing)
    span = tracing.start("chat", {}, Exchange("id", 0.0))
    span.end(Exchange("id", 0.0), "/v1/chat/completions", 200)
    tracing.shutdown()

    assert span.ids == {}


def test_a_protocol_that_is_not_spoken_is_refused() -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(ConfigurationError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT.*grpc, only http/protobuf is spoken"):
        create_tracing(None, environ)


def run_in_a_process(code: str) -> str:
    words = [sys.executable, "-c", code]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        ("'http://localhost:4318', {}", "--otlp-endpoint"),
        ("None, {'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://localhost:4318'}", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_the_extra_is_named_where_it_is_missing(arguments: str, source: str) -> None:
    said = run_in_a_process(
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from medusa_core.errors import ConfigurationError\n"
        "from server.tracing import create_tracing\n"
        f"try: create_tracing({arguments})\n"
        "except ConfigurationError as error: print(error)"
    )

    assert said.startswith(source)
    assert "pip install 'medusa-server[otel]'" in said


def test_a_server_without_tracing_loads_nothing_for_it() -> None:
    said = run_in_a_process(
        "import sys; import server.tracing; server.tracing.create_tracing(None, {})\n"
        "print('server.otel' in sys.modules, 'opentelemetry.sdk' in sys.modules)"
    )

    assert said == "False False\n"
