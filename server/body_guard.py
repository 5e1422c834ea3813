"""The body of a request, read whole before anything is done with it: within a size and within a time."""

import asyncio
import contextlib
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medusa_core.errors import MedusaError
from server.errors import BodyTooLarge, RequestTooSlow, error_response

__all__ = ["BodyGuard"]

# How long a client that was refused may go on sending; closed at once, it would see a reset and no answer.
LINGER_S = 2.0


class BodyGuard:
    """Calls the application with the whole body, or answers 413 or 408 instead.

    An application that reads by itself can only raise when the client dawdles, and a framework makes that a 500.

    timeout_s:  for the whole body, however it is cut into pieces.
    on_refused: told of every refusal.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, timeout_s: float, on_refused: Callable[[MedusaError], None]
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or refuse it; a client that leaves before its end is not answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(scope, receive)
        except TimeoutError:
            late = RequestTooSlow("body", self._timeout_s)
            self._on_refused(late)
            await error_response(late, {"connection": "close"})(scope, receive, send)
        except BodyTooLarge as large:
            self._on_refused(large)
            await _refuse(large, receive, send)
        else:
            if body is not None:
                await self._app(scope, _replayed(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body, None when the client has left. Raises BodyTooLarge, where possible before anything is read."""
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)
        body = bytearray()
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise BodyTooLarge(self._max_body_bytes)
            if not message.get("more_body", False):
                return bytes(body)
        return None


async def _refuse(error: BodyTooLarge, receive: Receive, send: Send) -> None:
    """A whole answer, then read what is still being sent, then close."""
    response = error_response(error, {"connection": "close"})
    await send({"type": "http.response.start", "status": response.status_code, "headers": list(response.raw_headers)})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What an application receives after its body was read: the body at once, then the client's departure."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
