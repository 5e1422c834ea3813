"""Clients that take an answer slowly or not at all: they cost a bounded amount of memory, and nobody else waits."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.live import Server, grown, open_files, resident_mib, serving
from tests.faults.traffic import COMPLETIONS, MODEL
from tests.faults.wire import Wire, ask

# Some megabytes that are computed in a moment, the scores of a long prompt: more than the kernel takes on the way.
VERBOSE: dict[str, Any] = {
    "model": MODEL, "prompt": "x = 1\n" * 400, "max_tokens": 2, "echo": True, "logprobs": 20, "n": 6,
}  # fmt: skip
SMALL: dict[str, Any] = {"model": MODEL, "prompt": "def dedent(text):\n", "max_tokens": 12, "temperature": 0}
READERS = 8
SEND_TIMEOUT_S = 3
# What all of them may cost together: their answers as text and as objects of Python, and not a multiple of it.
MOST_MIB = 30.0 * READERS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that gives up on clients sooner than users would want it to."""
    options = ("--send-timeout-s", str(SEND_TIMEOUT_S), "--queue-size", str(READERS))
    with serving(tmp_path_factory.mktemp("slow"), *options) as server:
        yield server


async def open_slow(server: Server, number: int, stream: bool) -> Wire:
    wire = await Wire.connect(server.port, receive_buffer=4096)
    wire.pause()
    await wire.send(COMPLETIONS, {**VERBOSE, "seed": number, "stream": stream})
    return wire


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_clients_that_read_nothing_stop_nobody_and_are_let_go(server: Server, stream: bool) -> None:
    async def run() -> None:
        expected = (await ask(server.port, COMPLETIONS, SMALL)).json()["choices"]
        costs = []
        for _ in range(2):
            before, files, memory = await server.idle(), open_files(server.pid), resident_mib(server.pid)
            slow = [await open_slow(server, number, stream) for number in range(READERS)]
            # behind all of them in the queue, and yet it is answered: none of them waits for its reader
            reply = await ask(server.port, COMPLETIONS, SMALL, within_s=100.0)
            assert reply.status == 200 and reply.json()["choices"] == expected
            costs.append(resident_mib(server.pid) - memory)
            assert (await server.health())["state"] == "ready"
            # the server closes them by itself
            for _ in range(600):
                if open_files(server.pid) <= files + 2:
                    break
                await asyncio.sleep(0.1)
            assert open_files(server.pid) <= files + 2, "clients that read nothing are still connected"
            for wire in slow:
                wire.leave(abruptly=True)
            after = await server.idle()
            assert grown(after, before, "medusa_requests_total", "finish_reason=error") == 0
        print(f"{READERS} clients that read nothing cost {', '.join(f'{cost:.1f}' for cost in costs)} MiB")
        assert costs[0] < MOST_MIB
        assert max(costs[1:]) < max(4.0, costs[0]), "what they cost is given back"

    asyncio.run(run())


def test_who_reads_a_byte_a_second_holds_up_nobody(server: Server) -> None:
    async def run() -> None:
        expected = (await ask(server.port, COMPLETIONS, SMALL)).json()["choices"]
        slow = await open_slow(server, 99, stream=True)
        slow.resume()
        for _ in range(4):
            assert len(await slow.read_raw(1)) == 1
            assert (await ask(server.port, COMPLETIONS, SMALL)).json()["choices"] == expected
            await asyncio.sleep(1.0)
        slow.leave(abruptly=True)
        await server.idle()

    asyncio.run(run())
