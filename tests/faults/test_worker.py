"""The worker is killed, stopped, starved and orphaned at each stage, with the demo model; the next answer is right."""

import asyncio
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medusa_core.config import model_location
from tests.faults.live import Server, grown, is_running, launch, ready, serving, worker_of
from tests.faults.traffic import COMPLETIONS, MODEL
from tests.faults.wire import Reply, Wire, ask, get

# Nothing is timed or compiled at the start, which is most of what a restart takes.
QUICKLY = ("--tree-nodes", "8", "--no-compile")
PATIENCE_S = 6
SMALL: dict[str, Any] = {"model": MODEL, "prompt": "def dedent(text):\n", "max_tokens": 24, "temperature": 0}
ENDLESS: dict[str, Any] = {
    "model": MODEL, "prompt": "import os\n", "max_tokens": 900, "ignore_eos": True, "n": 16,
    "temperature": 1.0, "seed": 1,
}  # fmt: skip
LONG: dict[str, Any] = {**SMALL, "prompt": " ".join(f"word{number}" for number in range(300))}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("worker"), *QUICKLY, "--step-timeout-s", str(PATIENCE_S)) as server:
        yield server


async def answer(server: Server) -> list[Any]:
    reply = await ask(server.port, COMPLETIONS, SMALL, within_s=60)
    assert reply.status == 200, reply.content
    found: list[Any] = reply.json()["choices"]
    return found


async def begun(server: Server) -> tuple[dict[str, float], list[Any]]:
    """The metrics of an idle server, and what it answers."""
    await ready(server)
    return await server.idle(), await answer(server)


async def open_stream(server: Server, body: Any = ENDLESS) -> Wire:
    """A stream that has begun."""
    wire = await Wire.connect(server.port)
    await wire.send(COMPLETIONS, {**body, "stream": True})
    assert (await wire.head()).status == 200
    return wire


async def gauge(server: Server, name: str, value: float) -> None:
    deadline = time.monotonic() + 30
    while (await server.metrics())[f"medusa_num_requests_{name}"] != value:
        assert time.monotonic() < deadline, f"there never were {value:g} requests {name}"
        await asyncio.sleep(0.005)


async def recovered(server: Server, before: dict[str, float], expected: list[Any], reason: str) -> None:
    """The next worker answers as the last one did, and one restart was counted, for this reason."""
    deadline = time.monotonic() + 60
    # until the server has noticed it still says that it is ready
    while grown(await server.metrics(), before, "medusa_worker_restarts_total") == 0:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    await ready(server)
    assert await answer(server) == expected
    after = await server.idle()
    reasons = {name: grown(after, before, "medusa_worker_restarts_total", f"reason={name}") for name in REASONS}
    assert reasons == {name: 1 if name == reason else 0 for name in REASONS}
    assert after["medusa_worker_up"] == 1


REASONS = ("crash", "oom", "hang", "manual")


def test_a_worker_killed_while_idle_costs_nobody_an_answer(server: Server) -> None:
    async def run() -> None:
        before, expected = await begun(server)
        os.kill(server.worker, signal.SIGKILL)
        await recovered(server, before, expected, "oom")

    asyncio.run(run())


@pytest.mark.parametrize("body", [LONG, ENDLESS], ids=["prefilling", "decoding"])
def test_a_worker_killed_at_work_is_an_error_for_who_is_answered_and_nobody_else(
    server: Server, body: dict[str, Any]
) -> None:
    async def run() -> None:
        before, expected = await begun(server)
        running = asyncio.create_task(ask(server.port, COMPLETIONS, body, within_s=60))
        await gauge(server, "running", 1)
        waiting = asyncio.create_task(answer(server))
        if body is ENDLESS:
            await gauge(server, "waiting", 1)
            await asyncio.sleep(0.3)
        os.kill(server.worker, signal.SIGKILL)
        reply: Reply = await running
        assert (reply.status, reply.error["code"], reply.error["type"]) == (500, "worker_died", "server_error")
        assert "signal 9" in reply.error["message"]
        assert await waiting == expected
        await recovered(server, before, expected, "oom")

    asyncio.run(run())


def test_a_worker_killed_in_mid_stream_is_a_last_event_for_the_reader(server: Server) -> None:
    async def run() -> None:
        before, expected = await begun(server)
        async with await open_stream(server) as wire:
            events = wire.events()
            for _ in range(5):
                await anext(events)
            os.kill(server.worker, signal.SIGKILL)
            *_, last = [event async for event in events]
        assert last["error"]["code"] == "worker_died"
        await recovered(server, before, expected, "oom")

    asyncio.run(run())


def test_a_worker_stopped_in_mid_stream_is_found_hanging(server: Server) -> None:
    async def run() -> None:
        before, expected = await begun(server)
        async with await open_stream(server) as wire:
            events = wire.events()
            await anext(events)
            waiting = asyncio.create_task(answer(server))
            await gauge(server, "waiting", 1)
            os.kill(server.worker, signal.SIGSTOP)
            *_, last = [event async for event in events]
        assert last["error"]["code"] == "worker_died"
        assert f"no sign of life for {PATIENCE_S} s" in last["error"]["message"]
        assert await waiting == expected
        await recovered(server, before, expected, "hang")

    asyncio.run(run())


def test_workers_killed_under_load_and_while_they_load_cost_only_whom_they_answer(server: Server) -> None:
    async def run() -> None:
        before, expected = await begun(server)
        answered = asyncio.create_task(ask(server.port, COMPLETIONS, ENDLESS, within_s=120))
        await gauge(server, "running", 1)
        asked = [asyncio.create_task(ask(server.port, COMPLETIONS, SMALL, within_s=120)) for _ in range(24)]
        await gauge(server, "waiting", 24)
        first = server.worker
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while (second := worker_of(server.pid)) in (None, first):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert second is not None and (await server.health())["state"] == "restarting"
        os.kill(second, signal.SIGKILL)

        lost = await answered
        assert (lost.status, lost.error["code"]) == (500, "worker_died")
        replies = await asyncio.gather(*asked)
        assert [reply.status for reply in replies] == [200] * 24
        assert all(reply.json()["choices"] == expected for reply in replies)
        await ready(server)
        assert await answer(server) == expected
        after = await server.idle()
        assert grown(after, before, "medusa_worker_restarts_total") == 2

    asyncio.run(run())


def test_a_request_without_memory_is_told_so_and_the_same_worker_answers_the_next(server: Server) -> None:
    async def run() -> None:
        (before, expected), worker = await begun(server), server.worker
        limits = resource.prlimit(worker, resource.RLIMIT_AS)
        # from now on it gets no more than it has; the scores of a long prompt take several MiB
        resource.prlimit(worker, resource.RLIMIT_AS, (1 << 20, limits[1]))
        scored = {**LONG, "echo": True, "logprobs": 1, "max_tokens": 1}
        reply = await ask(server.port, COMPLETIONS, scored, within_s=60)
        resource.prlimit(worker, resource.RLIMIT_AS, limits)

        assert (reply.status, reply.error["code"], reply.error["type"]) == (503, "out_of_memory", "server_error")
        assert "--max-context" in reply.error["message"]
        assert await answer(server) == expected
        after = await server.idle()
        assert server.worker == worker
        assert grown(after, before, "medusa_worker_restarts_total") == 0

    asyncio.run(run())


def test_a_model_that_is_damaged_meanwhile_is_named_and_found_again(tmp_path: Path) -> None:
    model = tmp_path / MODEL
    shutil.copytree(model_location("demo"), model)
    heads = model / "heads" / "medusa_lm_head.safetensors"
    whole = heads.read_bytes()

    async def run(server: Server) -> None:
        expected = await answer(server)
        heads.write_bytes(whole[:1000])
        os.kill(server.worker, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while "is damaged" not in (await server.health())["reason"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        for reply in (await get(server.port, "/ready"), await ask(server.port, COMPLETIONS, SMALL)):
            assert (reply.status, reply.error["code"]) == (503, "not_ready")
            assert "retry-after" in reply.head.headers
        heads.write_bytes(whole)
        await ready(server)
        assert await answer(server) == expected

    with serving(tmp_path, *QUICKLY, "--model", str(model)) as server:
        asyncio.run(run(server))


def test_sigterm_lets_the_running_stream_end_and_tells_those_that_wait(tmp_path: Path) -> None:
    async def run(server: Server) -> list[Any]:
        async with await open_stream(server) as running:
            others = [asyncio.create_task(ask(server.port, COMPLETIONS, SMALL, within_s=60)) for _ in range(4)]
            await gauge(server, "waiting", 4)
            server.process.send_signal(signal.SIGTERM)
            events = [event async for event in running.events()]
        return [events[-1]["error"]["code"], *[(await other).status for other in others]]

    with serving(tmp_path, *QUICKLY, "--shutdown-timeout-s", "4") as server:
        worker = server.worker
        assert asyncio.run(run(server)) == ["not_ready", 503, 503, 503, 503]
        assert server.process.wait(20) == -signal.SIGTERM
        assert not is_running(worker)


@pytest.mark.parametrize("is_stopped", [False, True], ids=["decoding", "stopped"])
def test_no_worker_outlives_a_server_that_was_killed(tmp_path: Path, is_stopped: bool) -> None:
    async def run(server: Server) -> None:
        await ready(server)
        async with await open_stream(server):
            worker = server.worker
            if is_stopped:
                os.kill(worker, signal.SIGSTOP)
            server.process.kill()
            server.process.wait()
        deadline = time.monotonic() + 10
        while is_running(worker):
            assert time.monotonic() < deadline, "the worker outlived its server"
            await asyncio.sleep(0.01)

    asyncio.run(run(launch(tmp_path, QUICKLY)))
