"""The API keys: every path needs one except a short list."""

import hmac
import secrets
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import InvalidApiKey, error_response

__all__ = ["KEY_LABEL", "OPEN_PATHS", "ApiKeyGuard"]

# Probes and scrapers come without a key; everything else is refused by default.
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
# Where the ASGI scope tells whose request it is, while there are several keys.
KEY_LABEL = "medusa.key"


class ApiKeyGuard:
    """Asks for `Authorization: Bearer KEY` before anything of the request is read.

    keys:       the operator's; none leave the server open, whatever clients send.
    on_refused: told of every refusal.

    With several keys `scope[KEY_LABEL]` tells which one was sent, by a digest that is worth nothing to anybody and is
    another one after the next start.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], on_refused: Callable[[InvalidApiKey], None]) -> None:
        self._app = app
        self._salt = secrets.token_bytes(16)
        self._digests = [self._digest(key.encode()) for key in keys]
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or answer 401."""
        # The path as routed, never a URL rebuilt from the Host header.
        if scope["type"] != "http" or not self._digests or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        found = self._found(scope)
        if found is not None:
            if len(self._digests) > 1:
                scope[KEY_LABEL] = found.hex()
            await self._app(scope, receive, send)
            return
        error = InvalidApiKey("the API key is missing or wrong; send it as 'Authorization: Bearer KEY'")
        self._on_refused(error)
        await error_response(error)(scope, receive, send)

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._salt, key, "sha256")

    def _found(self, scope: Scope) -> bytes | None:
        """Digest of the key that was sent, None unless it is one of the operator's."""
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        # headers are latin-1, the operator's keys are text
        given = self._digest(key.strip().encode("latin-1"))
        found: bytes | None = None
        for digest in self._digests:  # all of them: when the loop ends must not tell which one it was
            if hmac.compare_digest(given, digest):
                found = digest
        return found if scheme.lower() == "bearer" else None
