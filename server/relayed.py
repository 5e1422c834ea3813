"""Requests that one process receives and another answers: what travels between the two."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope

__all__ = ["plain_scope", "relayed_answer", "whole_response"]

logger = logging.getLogger("medusa.relayed")

# What describes the request; the rest of a scope are objects of the process that received it.
PLAIN_KEYS = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
    "client", "server",
)  # fmt: skip


def plain_scope(scope: Scope) -> Scope:
    """A scope that can be sent to another process."""
    return {key: value for key, value in scope.items() if key in PLAIN_KEYS}


async def relayed_answer(app: ASGIApp, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
    """What the application sends in answer to a whole request, message by message.

    Closing the iterator early, or cancelling who awaits it, tells the application that the client has left.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    requests = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    answering = asyncio.ensure_future(app(scope, receive, messages.put))
    answering.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        while (message := await messages.get()) is not None:
            yield message
    finally:
        gone.set()
        (failure,) = await asyncio.gather(answering, return_exceptions=True)
        if isinstance(failure, Exception):
            # it was answered with 500, and nobody above would say why
            logger.error("a request failed", exc_info=failure)


def whole_response(messages: Sequence[Message]) -> Response:
    """The response that all messages of an answer make."""
    start, *parts = messages
    response = Response(b"".join(part.get("body", b"") for part in parts), start["status"])
    response.raw_headers = list(start["headers"])
    return response
