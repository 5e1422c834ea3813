"""Many clients at once, a third of whom leave: every answer is the one that the request brings alone."""

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.clients import Seen, alone, differences, drive
from tests.faults.live import Server, grown, serving
from tests.faults.traffic import CHAT, Mix, asks

SEED, REQUESTS, CLIENTS, QUEUE = 6, 500, 32, 16
# some of those that leave are answered before they do
MIX = Mix(leaving=0.4, wrong=0.03)


@dataclass
class Watched:
    """What probes and scrapers see meanwhile."""

    scrapes: int = 0
    most_running: float = 0.0
    most_waiting: float = 0.0
    slowest_s: float = 0.0
    states: set[str] = field(default_factory=set)


@contextlib.asynccontextmanager
async def watching(server: Server) -> AsyncIterator[Watched]:
    """Ask for health and metrics all the time; each must be answered."""
    watched, is_over = Watched(), asyncio.Event()

    async def watch() -> None:
        while not is_over.is_set():
            started = time.monotonic()
            watched.states.add((await server.health())["state"])
            now = await server.metrics()
            watched.slowest_s = max(watched.slowest_s, time.monotonic() - started)
            watched.most_running = max(watched.most_running, now["medusa_num_requests_running"])
            watched.most_waiting = max(watched.most_waiting, now["medusa_num_requests_waiting"])
            watched.scrapes += 1
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        try:
            yield watched
        finally:
            is_over.set()


@pytest.mark.timeout(900)
def test_under_load_every_answer_is_its_solo_answer_and_nothing_is_lost(tmp_path: Path) -> None:
    requests = asks(SEED, range(REQUESTS), MIX)

    async def load(server: Server) -> tuple[list[Seen], Watched, dict[str, float], dict[str, float]]:
        before = await server.metrics()
        async with watching(server) as watched:
            seen = await drive(server.port, requests, CLIENTS)
        return seen, watched, before, await server.idle()

    (tmp_path / "loaded").mkdir()
    with serving(tmp_path / "loaded", "--queue-size", str(QUEUE)) as server:
        seen, watched, before, after = asyncio.run(load(server))

    finished = [one for one in seen if one.is_whole]
    (tmp_path / "idle").mkdir()
    with serving(tmp_path / "idle") as server:
        solo = asyncio.run(alone(server.port, [one.ask for one in finished]))

    assert differences(seen, solo) == []
    assert sorted(one.ask.number for one in seen) == list(range(REQUESTS)), "every request came to an end"
    assert all(one.is_whole or one.has_left or one.is_refused for one in seen)
    refused = sum(one.is_refused for one in seen)
    left = len(seen) - len(finished) - refused
    print(f"{len(finished)} finished, {left} left, {sum(one.turned_away for one in seen)} turned away")
    print(_first_byte_times(finished), f"; the slowest probe took {watched.slowest_s:.2f} s")
    assert left >= REQUESTS // 4, "too few clients leave to say anything"

    assert watched.states == {"ready"} and watched.scrapes > 10
    assert watched.most_running == 1
    assert QUEUE / 2 < watched.most_waiting <= QUEUE

    def count(name: str, *labels: str) -> float:
        return grown(after, before, name, *labels)

    turned_away = sum(one.turned_away for one in seen)
    # who leaves while that is on the way does not see it
    assert 0 < turned_away <= count("medusa_requests_rejected_total", "reason=queue_full") <= turned_away + left
    assert count("medusa_requests_rejected_total", "reason=invalid") == refused > 0
    assert count("medusa_requests_total", "finish_reason=error") == 0
    assert count("medusa_requests_total", "finish_reason=timeout") == 0
    for endpoint, path in (("chat", True), ("completions", False)):
        ended = Counter(one.choices[-1].reason for one in finished if (one.ask.path == CHAT) is path)
        for reason in ("stop", "length", "tool_calls"):
            counted = count("medusa_requests_total", f"endpoint={endpoint}", f"finish_reason={reason}")
            # who leaves while its last byte is on the way is counted as answered
            assert ended[reason] <= counted <= ended[reason] + left, (endpoint, reason, ended, counted)
    answered = count("medusa_requests_total") - count("medusa_requests_total", "finish_reason=abort")
    cancelled = count("medusa_requests_cancelled_total")
    assert answered >= len(finished)
    assert len(seen) - refused - 20 <= answered + cancelled <= len(seen) - refused, (
        "all but those that left before they were read"
    )
    tokens = sum(one.usage["completion_tokens"] for one in finished)
    assert tokens <= count("medusa_generation_tokens_total") <= tokens + left * 2 * 97
    assert count("medusa_tokens_per_step_sum") + count("medusa_time_to_first_token_seconds_count") <= count(
        "medusa_generation_tokens_total"
    ) + sum(one.ask.body.get("n", 1) for one in seen)


def _first_byte_times(finished: list[Seen]) -> str:
    times = sorted(one.first_s for one in finished if not math.isnan(one.first_s))
    return f"first byte: median {times[len(times) // 2]:.2f} s, unluckiest {times[-1]:.2f} s"
