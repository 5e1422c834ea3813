import asyncio
import json
from collections.abc import Sequence
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from medusa_core.errors import MedusaError
from server.body_guard import BodyGuard

LIMIT, TIMEOUT_S = 10, 0.05


class Guarded:
    """A guard over an application that keeps what it receives; the client sends these pieces and then leaves."""

    def __init__(self, pieces: Sequence[bytes], declared: bytes | None = None, pause_s: float = 0.0) -> None:
        self.received: list[Message] = []
        self.sent: list[Message] = []
        self.refused: list[MedusaError] = []
        self.reads = 0

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            self.received += [await receive(), await receive()]
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def receive() -> Message:
            self.reads += 1
            await asyncio.sleep(pause_s)
            if self.reads > len(pieces):
                return {"type": "http.disconnect"}
            piece = pieces[self.reads - 1]
            return {"type": "http.request", "body": piece, "more_body": piece != b""}

        async def send(message: Message) -> None:
            self.sent.append(message)

        headers = [] if declared is None else [(b"content-length", declared)]
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        asyncio.run(BodyGuard(app, LIMIT, TIMEOUT_S, self.refused.append)(scope, receive, send))

    @property
    def status(self) -> int | None:
        found: int | None = self.sent[0]["status"] if self.sent else None
        return found

    @property
    def code(self) -> str:
        body = b"".join(message.get("body", b"") for message in self.sent[1:])
        code: str = json.loads(body)["error"]["code"]
        return code


def test_the_application_receives_the_whole_body_at_once_and_then_that_the_client_left() -> None:
    guarded = Guarded([b"hello", b"world", b""])

    assert guarded.received == [
        {"type": "http.request", "body": b"helloworld", "more_body": False},
        {"type": "http.disconnect"},
    ]
    assert guarded.status == 200
    assert guarded.refused == []


def test_a_body_that_declares_too_much_is_refused_before_it_is_read() -> None:
    for declared in (b"11", b"9" * 20, b"9" * 19):
        guarded = Guarded([], declared)

        assert (guarded.status, guarded.code) == (413, "request_too_large")
        assert guarded.received == []
        assert (b"connection", b"close") in guarded.sent[0]["headers"]


def test_a_body_that_declares_nothing_is_refused_once_it_is_too_large() -> None:
    guarded = Guarded([b"x" * 6] * 1000 + [b""])

    assert (guarded.status, guarded.code) == (413, "request_too_large")
    assert guarded.received == []
    assert len(guarded.refused) == 1


def test_a_refused_client_may_finish_sending_so_that_it_reads_the_answer() -> None:
    guarded = Guarded([b"x" * 6] * 9 + [b""])

    assert guarded.reads == 10
    assert guarded.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    # the answer was complete before the rest was read
    assert int(dict(guarded.sent[0]["headers"])[b"content-length"]) == len(guarded.sent[1]["body"])


def test_the_time_is_that_of_the_whole_body_not_of_a_piece() -> None:
    guarded = Guarded([b"x"] * 10 + [b""], pause_s=TIMEOUT_S / 3)

    assert (guarded.status, guarded.code) == (408, "request_timeout")
    assert guarded.received == []


def test_a_client_that_leaves_before_the_end_is_neither_answered_nor_handed_on() -> None:
    guarded = Guarded([b"hello"])

    assert guarded.sent == []
    assert guarded.received == []


def test_the_limit_itself_is_allowed() -> None:
    assert Guarded([b"x" * LIMIT, b""], str(LIMIT).encode()).status == 200
