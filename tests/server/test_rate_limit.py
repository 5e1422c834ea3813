import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from server.auth import KEY_LABEL
from server.errors import RateLimited
from server.rate_limit import RateLimit


class Counter:
    """A limit of three requests a minute over an application that answers 200; `now` is its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.refused: list[RateLimited] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})

        self.limit = RateLimit(app, 3, self.refused.append, lambda: self.now)

    def ask(self, key: str | None = None, method: str = "POST") -> Message:
        """The head of the answer."""
        sent: list[Message] = []

        async def receive() -> Message:
            raise AssertionError("the body was read before the request was counted")

        async def send(message: Message) -> None:
            sent.append(message)

        scope: dict[str, Any] = {"type": "http", "method": method, "path": "/v1/completions", "headers": []}
        if key is not None:
            scope[KEY_LABEL] = key
        asyncio.run(self.limit(scope, receive, send))
        return sent[0]


def statuses(counter: Counter, count: int, key: str | None = None) -> list[int]:
    return [counter.ask(key)["status"] for _ in range(count)]


def test_a_minute_s_requests_may_be_asked_at_once_and_no_more() -> None:
    counter = Counter()

    assert statuses(counter, 5) == [200, 200, 200, 429, 429]
    assert len(counter.refused) == 2


def test_the_answer_says_when_the_next_request_may_come() -> None:
    counter = Counter()
    statuses(counter, 3)
    counter.now = 5.5
    refused = dict(counter.ask()["headers"])

    # one every twenty seconds, of which five and a half have passed
    assert refused[b"retry-after"] == b"15"
    counter.now = 5.5 + 15
    assert statuses(counter, 2) == [200, 429]


def test_a_pause_fills_the_bucket_to_the_brim_only() -> None:
    counter = Counter()
    statuses(counter, 3)
    counter.now = 3600.0

    assert statuses(counter, 4) == [200, 200, 200, 429]


def test_each_key_has_its_own_requests() -> None:
    counter = Counter()

    assert statuses(counter, 4, "a") == [200, 200, 200, 429]
    assert statuses(counter, 4, "b") == [200, 200, 200, 429]


def test_what_only_reads_is_not_counted() -> None:
    counter = Counter()

    assert [counter.ask(method="GET")["status"] for _ in range(9)] == [200] * 9
    assert statuses(counter, 3) == [200, 200, 200]
