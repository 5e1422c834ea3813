"""Server-sent events: framing, the end marker, errors after the first byte, and clients that leave."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from medusa_core.errors import MedusaError
from server.errors import error_body

__all__ = ["let_streams_finish", "stream_response"]

DONE = b"data: [DONE]\n\n"


def let_streams_finish() -> None:
    """Keep open streams alive at SIGTERM; sse-starlette would cut them off at once.

    They end by themselves or with an error event before uvicorn's graceful timeout.
    """
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


async def _events(chunks: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    """One event per chunk, [DONE] exactly once and last, after an error too."""
    try:
        async for chunk in chunks:
            yield _event(chunk)
    except MedusaError as error:
        # the status has left already
        yield _event(error_body(error))
    yield DONE


class _AnswerStream(EventSourceResponse):
    """An event stream that reports its end however it comes: finished, client gone, never begun."""

    def __init__(
        self, chunks: AsyncIterator[Mapping[str, Any]], on_end: Callable[[], None], headers: Mapping[str, str]
    ):
        super().__init__(_events(chunks), headers=headers, sep="\n")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


def stream_response(
    chunks: AsyncIterator[Mapping[str, Any]], on_end: Callable[[], None], headers: Mapping[str, str]
) -> Response:
    """Send chunks as they come.

    chunks: JSON objects; a MedusaError raised between them becomes the last event.
    on_end: called once when the response is over, also when the client left before its first byte.
    """
    return _AnswerStream(chunks, on_end, headers)
