"""The API key: every path needs it except a short list."""

import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import InvalidApiKey, error_response

__all__ = ["OPEN_PATHS", "ApiKeyGuard"]

# Probes and scrapers come without a key; everything else is refused by default.
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})


class ApiKeyGuard:
    """Asks for `Authorization: Bearer KEY` before anything of the request is read.

    key:        the operator's key; None leaves the server open, whatever clients send.
    on_refused: told of every refusal.
    """

    def __init__(self, app: ASGIApp, key: str | None, on_refused: Callable[[InvalidApiKey], None]) -> None:
        self._app = app
        self._key = key.encode() if key is not None else None
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or answer 401."""
        # The path as routed, never a URL rebuilt from the Host header.
        if scope["type"] != "http" or self._key is None or scope["path"] in OPEN_PATHS or self._is_right(scope):
            await self._app(scope, receive, send)
            return
        error = InvalidApiKey("the API key is missing or wrong; send it as 'Authorization: Bearer KEY'")
        self._on_refused(error)
        await error_response(error)(scope, receive, send)

    def _is_right(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        # headers are latin-1, the operator's key is text
        given = key.strip().encode("latin-1")
        return scheme.lower() == "bearer" and self._key is not None and hmac.compare_digest(given, self._key)
