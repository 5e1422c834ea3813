"""How often a key may ask: a bucket of requests for each, refilled evenly."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from server.auth import KEY_LABEL
from server.errors import RateLimited, error_response

__all__ = ["RateLimit"]


@dataclass
class _Bucket:
    """Requests that may be asked at once, and when they were last counted."""

    left: float
    counted: float


class RateLimit:
    """Refuses requests with 429 once a key has asked too often; what only reads is not counted.

    per_minute: requests a key may ask at once, and then again in every minute. With one key, or none, all clients
                share them.
    on_refused: told of every refusal.
    clock:      seconds that only grow.
    """

    def __init__(
        self,
        app: ASGIApp,
        per_minute: int,
        on_refused: Callable[[RateLimited], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._per_minute = per_minute
        self._on_refused = on_refused
        self._clock = clock
        # one for each of the operator's keys; others do not come this far
        self._buckets: dict[str | None, _Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or answer 429."""
        wait_s = self._wait_s(scope.get(KEY_LABEL)) if scope.get("method") == "POST" else 0.0
        if wait_s == 0:
            await self._app(scope, receive, send)
            return
        error = RateLimited(self._per_minute, math.ceil(wait_s))
        self._on_refused(error)
        await error_response(error)(scope, receive, send)

    def _wait_s(self, key: str | None) -> float:
        """Take a request out of a key's bucket and return 0, or the seconds until there is one again."""
        now, rate = self._clock(), self._per_minute / 60
        bucket = self._buckets.setdefault(key, _Bucket(self._per_minute, now))
        bucket.left = min(self._per_minute, bucket.left + (now - bucket.counted) * rate)
        bucket.counted = now
        if bucket.left < 1:
            return (1 - bucket.left) / rate
        bucket.left -= 1
        return 0.0
