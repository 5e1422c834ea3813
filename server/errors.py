"""OpenAI-shaped errors: one table from exception class to status, type and code."""

import http
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from medusa_core.errors import (
    CheckpointError,
    ConfigurationError,
    DeviceFault,
    EngineError,
    HeadsMismatch,
    InvalidParameter,
    MedusaError,
    MissingChatTemplate,
    ModelNotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    PromptTooLong,
    QualityLost,
    QueueFull,
    QueueTimeout,
    RequestError,
    RequestTimeout,
    UnknownModel,
    UnsupportedModel,
    UnsupportedParameter,
    WorkerDied,
)

__all__ = [
    "PROBLEMS",
    "BodyTooLarge",
    "HeadersTooLarge",
    "InvalidApiKey",
    "MalformedHttp",
    "Problem",
    "RateLimited",
    "RequestTooSlow",
    "TooManyConnections",
    "error_body",
    "error_response",
    "problem_of",
]


class InvalidApiKey(RequestError):
    """The key is missing or wrong."""


class BodyTooLarge(RequestError):
    """The request body has more bytes than the server reads."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request body is larger than {limit} bytes; shorten it or raise --max-body-bytes")


class MalformedHttp(RequestError):
    """The bytes are no request, or one that can be read in two ways."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the request is not valid HTTP: {reason}")


class HeadersTooLarge(RequestError):
    """The header has more bytes than the server reads."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request's header is larger than {limit} bytes; send fewer or shorter fields")


class RequestTooSlow(RequestError):
    """A part of the request did not arrive in time."""

    def __init__(self, part: Literal["header", "body"], timeout_s: float) -> None:
        super().__init__(
            f"the request's {part} was not complete within {timeout_s:g} s; send it faster or raise --{part}-timeout-s"
        )


class TooManyConnections(Overloaded):
    """As many clients are connected as the server takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} connections are open already; reuse one, or raise --max-connections", 1)


class RateLimited(Overloaded):
    """The key has asked as often as it may."""

    def __init__(self, per_minute: int, retry_after_s: int) -> None:
        super().__init__(
            f"the key may ask {per_minute} requests a minute; retry in {retry_after_s} s, or raise --rate-limit",
            retry_after_s,
        )


@dataclass(frozen=True)
class Problem:
    """What a client is told about one class of errors.

    rejected_as: label of medusa_requests_rejected_total; None when the request was not turned away.
    """

    status: int
    type: str
    code: str | None
    rejected_as: str | None = None


INVALID = "invalid_request_error"

# The nearest class in the method resolution order counts, so a subclass without a row is its parent.
PROBLEMS: dict[type[Exception], Problem] = {
    MedusaError: Problem(500, "server_error", None),
    RequestError: Problem(400, INVALID, "invalid_value", "invalid"),
    InvalidParameter: Problem(400, INVALID, "invalid_value", "invalid"),
    UnsupportedParameter: Problem(400, INVALID, "unsupported_parameter", "invalid"),
    PromptTooLong: Problem(400, INVALID, "context_length_exceeded", "invalid"),
    UnknownModel: Problem(404, INVALID, "model_not_found", "invalid"),
    MissingChatTemplate: Problem(400, INVALID, "missing_chat_template", "invalid"),
    InvalidApiKey: Problem(401, INVALID, "invalid_api_key", "auth"),
    BodyTooLarge: Problem(413, INVALID, "request_too_large", "too_large"),
    HeadersTooLarge: Problem(431, INVALID, "header_too_large", "too_large"),
    MalformedHttp: Problem(400, INVALID, "malformed_http", "invalid"),
    RequestTooSlow: Problem(408, INVALID, "request_timeout", "invalid"),
    RateLimited: Problem(429, "rate_limit_error", "rate_limit_exceeded", "rate_limited"),
    TooManyConnections: Problem(503, "server_error", "too_many_connections", "connections"),
    Overloaded: Problem(503, "server_error", "overloaded", "draining"),
    QueueFull: Problem(429, "rate_limit_error", "queue_full", "queue_full"),
    QueueTimeout: Problem(503, "server_error", "deadline_exceeded_in_queue"),
    NotReady: Problem(503, "server_error", "not_ready", "draining"),
    RequestTimeout: Problem(504, "server_error", "deadline_exceeded"),
    CheckpointError: Problem(503, "server_error", "model_not_loaded"),
    ModelNotFound: Problem(503, "server_error", "model_not_loaded"),
    UnsupportedModel: Problem(503, "server_error", "model_not_loaded"),
    HeadsMismatch: Problem(503, "server_error", "model_not_loaded"),
    ConfigurationError: Problem(500, "server_error", None),
    QualityLost: Problem(500, "server_error", None),
    EngineError: Problem(500, "server_error", None),
    OutOfMemory: Problem(503, "server_error", "out_of_memory"),
    DeviceFault: Problem(500, "server_error", "device_fault"),
    WorkerDied: Problem(500, "server_error", "worker_died"),
    RequestValidationError: Problem(400, INVALID, "invalid_value", "invalid"),
    HTTPException: Problem(500, INVALID, None),
    Exception: Problem(500, "server_error", None),
}


def problem_of(error: Exception) -> Problem:
    """The row of the table for an error; framework errors keep their own status."""
    if isinstance(error, HTTPException):
        rejected_as = "invalid" if error.status_code == 400 else None
        kind = INVALID if error.status_code < 500 else "server_error"
        return Problem(error.status_code, kind, None, rejected_as)
    return next(PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS)


def _field(location: tuple[Any, ...]) -> str:
    """`("body", "messages", 0, "role")` as `messages[0].role`."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return name


def _validation_message(error: RequestValidationError) -> tuple[str, str | None]:
    """The first complaint in words, and the field it is about. Never echoes the input: it may not be JSON."""
    first = error.errors()[0]
    location = tuple(first["loc"])
    location = location[1:] if location and location[0] == "body" else location
    if first["type"] == "json_invalid":
        return f"the body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}", None
    if not location:
        return "the body must be a JSON object, sent with Content-Type: application/json", None
    if first["type"] == "extra_forbidden":
        return f"{_field(location)}: there is no such field; GET /docs lists those there are", _field(location)
    # what a validator of ours raised comes back with this prefix
    message = str(first["msg"]).removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    return f"{_field(location)}: {message}", _field(location)


def _http_message(error: HTTPException, asked: str) -> str:
    if error.status_code == 404:
        return f"there is no {asked} here; the base URL of clients ends in /v1, and GET /docs lists all routes"
    if error.status_code == 405:
        allowed = error.headers.get("Allow") if error.headers is not None else None
        return f"there is no {asked} here; the route takes {allowed if allowed is not None else 'another method'}"
    if error.detail == http.HTTPStatus(error.status_code).phrase or error.status_code == 400:
        return "the body cannot be read: it must be a JSON object of moderate depth in UTF-8"
    return str(error.detail)


def error_body(error: Exception, asked: str = "such route") -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, always encodable as JSON.

    asked: method and path, for the message where they lead nowhere.
    """
    problem = problem_of(error)
    param: str | None = None
    if isinstance(error, RequestValidationError):
        message, param = _validation_message(error)
    elif isinstance(error, HTTPException):
        message = _http_message(error, asked)
    elif isinstance(error, MedusaError):
        message, param = str(error), error.param if isinstance(error, RequestError) else None
    else:
        message = "the server failed on this request; its log says why"
    return {
        "error": {
            # a client's lone surrogates may be quoted in a message
            "message": message.encode("utf-8", "replace").decode(),
            "type": problem.type,
            "param": param if param is None else param.encode("utf-8", "replace").decode(),
            "code": problem.code,
        }
    }


def error_response(error: Exception, headers: Mapping[str, str] | None = None, asked: str = "such route") -> Response:
    """The whole answer to a request that failed before its first byte; see error_body for `asked`."""
    sent = dict(headers) if headers is not None else {}
    if isinstance(error, Overloaded):
        sent["retry-after"] = str(error.retry_after_s)
    elif isinstance(error, RequestTimeout | OutOfMemory):
        # clients would ask twice more by themselves, and fare no better
        sent["x-should-retry"] = "false"
    elif isinstance(error, InvalidApiKey):
        sent["www-authenticate"] = "Bearer"
    elif isinstance(error, HTTPException) and error.headers is not None:
        sent.update(error.headers)
    return Response(
        msgspec.json.encode(error_body(error, asked)),
        status_code=problem_of(error).status,
        headers=sent,
        media_type="application/json",
    )
