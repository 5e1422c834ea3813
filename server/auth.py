"""The API keys: every path needs one except a short list."""

import hmac
import secrets
from collections.abc import Callable, Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import InvalidApiKey, error_response

__all__ = ["KEY_LABEL", "ApiKeyGuard", "is_open", "open_paths"]

# What may be open to everybody; a path that is not listed needs a key. One that ends in / stands for all below it,
# except the root, which is only itself.
PROBES = frozenset({"/health", "/ready"})
METRICS = frozenset({"/metrics"})
DOCS = frozenset({"/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc", "/static-offline-docs/"})
# The page holds nothing; what it shows it asks for with the key that is typed into it.
PLAYGROUND = frozenset({"/", "/playground/"})
# Where the ASGI scope tells whose request it is, while there are several keys.
KEY_LABEL = "medusa.key"


def open_paths(metrics: bool, docs: bool, playground: bool) -> frozenset[str]:
    """What needs no key: the probes, and metrics, described interface and playground where the operator says so."""
    chosen = {METRICS: metrics, DOCS: docs, PLAYGROUND: playground}
    return PROBES.union(*(paths for paths, is_open_to_all in chosen.items() if is_open_to_all))


def is_open(path: str, paths: Collection[str]) -> bool:
    """Whether a path, as it is routed, is one of these or below one that ends in /."""
    folders = (parent for parent in paths if parent.endswith("/") and parent != "/")
    return path in paths or any(path.startswith(folder) for folder in folders)


def _without_body(receive: Receive) -> Receive:
    """Nothing open takes a body, so none is read there: strangers could fill the memory with theirs."""
    is_told = False

    async def told() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": b"", "more_body": False}

    return told


class ApiKeyGuard:
    """Asks for `Authorization: Bearer KEY` or `X-Api-Key: KEY` before anything of the request is read.

    keys:       the operator's; none leave the server open, whatever clients send.
    open_paths: what needs none, see is_open.
    on_refused: told of every refusal.

    With several keys `scope[KEY_LABEL]` tells which one was sent, by a digest that is worth nothing to anybody and is
    another one after the next start.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        open_paths: Collection[str],
        on_refused: Callable[[InvalidApiKey], None],
    ) -> None:
        self._app = app
        self._open_paths = open_paths
        self._salt = secrets.token_bytes(16)
        self._digests = [self._digest(key.encode()) for key in keys]
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or answer 401."""
        if scope["type"] == "lifespan" or not self._digests:
            await self._app(scope, receive, send)
            return
        # The path as routed, never a URL rebuilt from the Host header.
        if is_open(scope["path"], self._open_paths):
            await self._app(scope, _without_body(receive), send)
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
        headers = Headers(scope=scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        # where a proxy's own password takes the one header, the key has the other
        sent = bearer.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip()
        found: bytes | None = None
        for key in sent:
            # headers are latin-1, the operator's keys are text
            given = self._digest(key.encode("latin-1"))
            for digest in self._digests:  # all of them: when the loop ends must not tell which one it was
                if hmac.compare_digest(given, digest):
                    found = digest
        return found
