"""Spans of every request for text, for an OpenTelemetry collector; nothing at all unless the operator names one."""

from collections.abc import Mapping
from typing import Protocol

from medusa_core.errors import ConfigurationError
from server.exchange import Exchange

__all__ = ["NoSpan", "NoTracing", "RequestSpan", "Tracing", "create_tracing"]

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"


class RequestSpan(Protocol):
    """The span of one request."""

    @property
    def ids(self) -> Mapping[str, str]:
        """What finds it again, for the lines of the log: trace_id and span_id, or nothing."""
        ...

    def end(self, exchange: Exchange, route: str, status: int) -> None:
        """The exchange is over: say how it went and where its time was spent."""
        ...


class Tracing(Protocol):
    """Where spans come from and go to."""

    def start(self, operation: str, headers: Mapping[str, str], exchange: Exchange) -> RequestSpan:
        """Begin the span of a request that has arrived, as a child of the client's when its headers name one.

        operation: `chat` or `text_completion`.
        """
        ...

    def shutdown(self) -> None:
        """Send what has not been sent, as far as a moment allows."""
        ...


class NoSpan:
    """No span."""

    ids: Mapping[str, str] = {}

    def end(self, exchange: Exchange, route: str, status: int) -> None:
        """Do nothing."""


class NoTracing:
    """Tracing that is off."""

    def start(self, operation: str, headers: Mapping[str, str], exchange: Exchange) -> NoSpan:
        """No span."""
        return NoSpan()

    def shutdown(self) -> None:
        """Do nothing."""


def create_tracing(endpoint: str | None, environ: Mapping[str, str]) -> Tracing:
    """Tracing towards a collector, or none.

    endpoint: base URL of the collector; None asks OpenTelemetry's own variables.
    environ:  where those are looked up.

    Raises ConfigurationError when a collector is named that cannot be spoken to: the extra is missing, or the
    variables ask for another protocol than OTLP over HTTP.
    """
    named = [name for name in ENDPOINT_VARIABLES if environ.get(name, "") != ""]
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_disabled or (endpoint is None and (not named or environ.get("OTEL_TRACES_EXPORTER") == "none")):
        return NoTracing()
    source = "--otlp-endpoint" if endpoint is not None else named[0]
    protocol = next((environ[name] for name in PROTOCOL_VARIABLES if environ.get(name, "") != ""), SPOKEN)
    if protocol != SPOKEN:
        raise ConfigurationError(
            f"{source} names a collector and the protocol is to be {protocol}, only {SPOKEN} is spoken; "
            f"name the collector's HTTP port and set {PROTOCOL_VARIABLES[1]}={SPOKEN}"
        )
    try:
        from server.otel import OtelTracing
    except ModuleNotFoundError as error:
        if error.name is not None and not error.name.startswith("opentelemetry"):
            raise
        raise ConfigurationError(
            f"{source} asks for traces, which need OpenTelemetry; pip install 'medusa-server[otel]', "
            "or set OTEL_SDK_DISABLED=true"
        ) from error
    return OtelTracing(endpoint)
