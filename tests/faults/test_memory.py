"""Nothing grows: not memory, not open files, not threads, not tasks, whatever clients send and however they leave."""

import asyncio
import gc
import os
from pathlib import Path

import httpx
import pytest

from tests.faults.clients import drive
from tests.faults.live import Server, open_files, resident_mib, serving, threads
from tests.faults.traffic import COMPLETIONS, Mix, asks
from tests.server.running import MODEL, running

SEED, WARM_UP, REQUESTS, CLIENTS = 11, 1000, 2000, 8
MIX = Mix(leaving=0.35, wrong=0.1, longest=10, unique=True)
# So small that the prompts of the warm-up fill it.
PREFIX_CACHE_MIB = 8
MOST_GROWTH = 0.05
# Threads of the pool that prepares requests start when they are first needed.
POOL = min(32, (os.cpu_count() or 1) + 4)


@pytest.mark.timeout(900)
def test_memory_files_and_threads_stay_flat_over_2000_requests(tmp_path: Path) -> None:
    async def send(server: Server, numbers: range) -> tuple[int, int]:
        seen = await drive(server.port, asks(SEED, numbers, MIX), CLIENTS)
        assert [f"{one.ask.name}: {one.problem}" for one in seen if one.problem is not None] == []
        await server.idle()
        return sum(one.has_left for one in seen), sum(one.is_refused for one in seen)

    def taken(server: Server) -> dict[str, float]:
        return {"server": resident_mib(server.pid), "worker": resident_mib(server.worker)}

    with serving(tmp_path, "--prefix-cache", str(PREFIX_CACHE_MIB), "--log-level", "warning") as server:
        asyncio.run(send(server, range(WARM_UP)))
        before, files, running_threads = taken(server), open_files(server.pid), threads(server.pid)
        print({name: f"{mib:.1f} MiB" for name, mib in before.items()}, files, "files", running_threads, "threads")
        left = refused = 0
        for part in range(4):
            start = WARM_UP + part * REQUESTS // 4
            more_left, more_refused = asyncio.run(send(server, range(start, start + REQUESTS // 4)))
            left, refused = left + more_left, refused + more_refused
            print({name: f"{mib:.1f} MiB" for name, mib in taken(server).items()})
        after = taken(server)
        assert left > 200 and refused > 100, (left, refused)
        assert open_files(server.pid) <= files + 1 and threads(server.pid) <= running_threads + POOL

    growth = {name: after[name] / before[name] - 1 for name in after}
    assert max(growth.values()) < MOST_GROWTH, growth


def test_no_task_outlives_its_request(tmp_path: Path) -> None:
    """In this process, where tasks can be counted, with an engine that costs nothing."""

    def pending() -> int:
        gc.collect()
        # by type: to ask some libraries' objects for their class would load what they stand for
        return sum(issubclass(type(thing), asyncio.Task) and not thing.done() for thing in gc.get_objects())

    with running(tmp_path, queue_size=4) as server:
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 200, "ignore_eos": True}

        def ask_all() -> None:
            for stream in (False, True):
                for events in (0, 1, 5):
                    with httpx.Client(timeout=20) as client:
                        request = client.build_request(
                            "POST", server.url + COMPLETIONS, json={**body, "stream": stream}
                        )
                        if not stream:
                            client.timeout = httpx.Timeout(0.02 * events + 0.01, connect=20)
                        try:
                            response = client.send(request, stream=True)
                            lines = response.iter_lines()
                            for _ in range(events):
                                next(lines, None)
                            response.close()
                        except httpx.TimeoutException:
                            pass
                server.post(COMPLETIONS, {**body, "max_tokens": -1})
                server.post(COMPLETIONS, {**body, "max_tokens": 3})
            server.wait_for("medusa_num_requests_running", 0)

        ask_all()
        before = pending()
        for _ in range(10):
            ask_all()
        # the connections of this client may take a moment to be seen as closed
        for _ in range(100):
            if pending() <= before:
                break
            server.get("/health")
        assert pending() <= before
