"""What /openapi.json says beyond what FastAPI finds out by itself: errors, the API key, what each part is for."""

from collections.abc import Collection, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.schemas.errors import ErrorBody

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "MODELS",
    "OPERATIONS",
    "TOKENS",
    "describe",
    "error_responses",
    "generation_responses",
]

CHAT, COMPLETIONS, MODELS, TOKENS, OPERATIONS = "chat", "completions", "models", "tokens", "operations"

TAGS = (
    {"name": CHAT, "description": "Answers to conversations, as OpenAI has them."},
    {"name": COMPLETIONS, "description": "Continuations of texts, as OpenAI has them."},
    {"name": MODELS, "description": "What is served."},
    {"name": TOKENS, "description": "The model's tokenizer."},
    {"name": OPERATIONS, "description": "For probes, which need no key, and for scrapers."},
)

DESCRIPTION = """An OpenAI-compatible server with Medusa tree decoding.

A known field whose effect cannot be given is refused with a 400 that names it; an unknown one is ignored and named in
the response header `x-ignored-fields`. Every error has OpenAI's shape, and every response an `x-request-id`.
"""

RETRY_AFTER = {"retry-after": {"description": "seconds until it may work", "schema": {"type": "integer"}}}
NEVER_RETRY = {"x-should-retry": {"description": "false: it would take too long again", "schema": {"type": "string"}}}

ERRORS: dict[int, dict[str, Any]] = {
    400: {"description": "the request cannot be honoured"},
    401: {"description": "the API key is missing or wrong"},
    404: {"description": "no such model"},
    413: {"description": "the body is too large"},
    429: {"description": "the queue is full, or the key has asked too often", "headers": RETRY_AFTER},
    500: {"description": "the server failed"},
    503: {"description": "loading, shutting down, or the request's turn did not come in time", "headers": RETRY_AFTER},
    504: {"description": "the answer was not complete in time", "headers": NEVER_RETRY},
}
OTHER_ERROR = {"description": "anything else, such as 405 for a method that the path does not take"}

# What a generation endpoint may answer instead of an answer.
GENERATION_ERRORS = (400, 404, 413, 429, 500, 503, 504)

ERROR_CONTENT = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}}
BEARER = "bearer"


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these errors, and of any other, for a route's `responses`."""
    described: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in statuses}
    described["default"] = OTHER_ERROR
    return {status: {**entry, "model": ErrorBody} for status, entry in described.items()}


def generation_responses() -> dict[int | str, dict[str, Any]]:
    """The documentation of an answer that may come as a stream, and of all errors instead of it."""
    events = {"schema": {"type": "string", "description": "one `data:` line for each chunk, then `data: [DONE]`"}}
    answer = {"description": "the answer, or its stream", "content": {"text/event-stream": events}}
    return {200: answer, **error_responses(*GENERATION_ERRORS)}


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            yield path, operation


def describe(app: FastAPI, open_paths: Collection[str], needs_key: bool) -> None:
    """Let the application describe itself, once it has all its routes.

    open_paths: what needs no key.
    needs_key:  whether anything does.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=list(TAGS)
        )
        components = schema["components"]
        for path, operation in _operations(schema):
            # FastAPI's own answer to a bad body, which this server never sends
            operation["responses"].pop("422", None)
            if needs_key and path not in open_paths:
                operation["security"] = [{BEARER: []}]
                operation["responses"]["401"] = dict(ERRORS[401])
            for status, response in operation["responses"].items():
                if status != "200":  # also where the route's own answer is no JSON
                    response["content"] = ERROR_CONTENT
        for unused in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(unused, None)
        if needs_key:
            components["securitySchemes"] = {BEARER: {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = schema
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
