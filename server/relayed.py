"""Requests that one process receives and another answers: what travels between the two."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope

__all__ = ["ANSWERED_BY", "answer_with_room", "disconnected", "plain_scope", "relayed_answer", "whole_response"]

logger = logging.getLogger("medusa.relayed")

# What describes the request; the rest of a scope are objects of the process that received it.
PLAIN_KEYS = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
    "client", "server",
)  # fmt: skip
# The key of an answer's first message that names the process it comes from.
ANSWERED_BY = "medusa.answered_by"


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


async def answer_with_room(
    ask: Callable[[Sequence[str]], AsyncGenerator[Message, None]], most: int
) -> AsyncGenerator[Message, None]:
    """The answer of the first process whose queue is not full, or what the last one said that was asked.

    ask:  sends the request to a process, none of those named if there is another; the first message of its answer tells
          under ANSWERED_BY who it is.
    most: how many there are at most.
    """
    full: list[str] = []
    while True:
        async with contextlib.aclosing(ask(full)) as answer:
            refusal: list[Message] = []
            async for message in answer:
                if refusal or (message["type"] == "http.response.start" and message["status"] == 429):
                    refusal.append(message)
                else:
                    yield message
        if not refusal:
            return
        answered_by = refusal[0][ANSWERED_BY]
        if answered_by in full or len(full) + 1 == most or not _is_of_full_queue(refusal):
            for message in refusal:
                yield message
            return
        full.append(answered_by)


def _is_of_full_queue(refusal: Sequence[Message]) -> bool:
    """Whether a 429 is for want of a place, and not because the client has asked too often."""
    code: str = msgspec.json.decode(whole_response(refusal).body)["error"]["code"]
    return code == "queue_full"


async def disconnected(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
