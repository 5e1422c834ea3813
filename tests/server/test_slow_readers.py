"""When a reader is too slow, by a clock that the test turns."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.http_protocol import ConnectionLimits, GuardedProtocol

SEND_LIMIT_S = 7.0


class Still(asyncio.Transport):
    """A transport whose client takes nothing unless the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent = 0
        self.has_closed = False
        self.was_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        self.unsent += len(data)

    def is_closing(self) -> bool:
        return self.has_closed

    def close(self) -> None:
        self.has_closed = True

    def abort(self) -> None:
        self.has_closed = self.was_aborted = True


@dataclass
class Timer:
    delay_s: float
    act: Any
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Clock:
    """An event loop as far as timers are concerned; they fire when the test says so."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, delay_s: float, act: Any) -> Timer:
        self.timers.append(Timer(delay_s, act))
        return self.timers[-1]

    def fire(self, delay_s: float) -> bool:
        """Let the timers of this length fire; whether there were any."""
        due = [timer for timer in self.timers if timer.delay_s == delay_s and not timer.is_cancelled]
        self.timers = [timer for timer in self.timers if timer not in due]
        for timer in due:
            timer.act()
        return due != []


def connected() -> tuple[GuardedProtocol, Still, Clock]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("nothing is asked")

    clock: Any = Clock()
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    limits = ConnectionLimits(header_timeout_s=3.0, send_timeout_s=SEND_LIMIT_S, max_connections=5)
    protocol = GuardedProtocol(limits, lambda error: None, config, ServerState(), {}, clock)
    transport = Still()
    protocol.connection_made(transport)
    return protocol, transport, clock


def test_the_last_bytes_of_an_answer_are_not_waited_for_for_ever() -> None:
    for end in ("on_response_complete", "timeout_keep_alive_handler"):
        protocol, transport, clock = connected()
        transport.unsent = 10
        transport.has_closed = end == "on_response_complete"
        getattr(protocol, end)()
        # the buffer is all but empty, which tells nobody that the rest will ever be read
        protocol.resume_writing()

        assert clock.fire(SEND_LIMIT_S)
        assert transport.was_aborted


def test_who_catches_up_is_left_alone() -> None:
    protocol, transport, clock = connected()
    transport.unsent = 100_000
    protocol.pause_writing()
    transport.unsent = 0
    protocol.resume_writing()

    assert not clock.fire(SEND_LIMIT_S)
    assert not transport.was_aborted


@pytest.mark.parametrize(("unsent", "taken"), [(200_000, 32_768), (10_000_000, 1_000_000)])
def test_a_reader_must_take_a_share_every_time(unsent: int, taken: int) -> None:
    protocol, transport, clock = connected()
    transport.unsent = unsent
    protocol.pause_writing()
    for _ in range(3):
        transport.unsent -= taken
        assert clock.fire(SEND_LIMIT_S)
        assert not transport.was_aborted
    transport.unsent -= taken - 1

    assert clock.fire(SEND_LIMIT_S)
    assert transport.was_aborted
