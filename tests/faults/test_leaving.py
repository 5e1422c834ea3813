"""Clients that vanish: whatever they were waiting for, the slot is free at once and the next answer is right."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.faults.live import Server, grown
from tests.faults.traffic import CHAT, COMPLETIONS, MODEL
from tests.faults.wire import Reply, Wire, ask

# Some minutes of work, which nobody waits for.
ENDLESS: dict[str, Any] = {
    "model": MODEL, "prompt": "import os\n", "max_tokens": 900, "ignore_eos": True, "n": 64,
    "temperature": 1.0, "seed": 1,
}  # fmt: skip
SMALL: dict[str, Any] = {"model": MODEL, "prompt": "def dedent(text):\n", "max_tokens": 12, "temperature": 0}
# A word and its number, so that no two prompts share their beginning.
LONG_WORDS = 220
# Far less than what would have been computed for those who left.
SOON_S = 15.0
TRIES = 30

ways = pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "reset"])
streamed = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


async def answer(server: Server, body: Any = SMALL, within_s: float = 60.0) -> list[Any]:
    reply = await ask(server.port, COMPLETIONS, body, within_s=within_s)
    assert reply.status == 200, reply.content
    found: list[Any] = reply.json()["choices"]
    return found


async def open_stream(server: Server, body: Any) -> Wire:
    """A stream whose first event has come."""
    wire = await Wire.connect(server.port)
    await wire.send(COMPLETIONS, {**body, "stream": True})
    assert (await wire.head()).status == 200
    assert await anext(aiter(wire.parts()))
    return wire


async def gauge(server: Server, name: str, value: float) -> None:
    for _ in range(2000):
        if (await server.metrics())[f"medusa_num_requests_{name}"] == value:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"never were {value:g} requests {name}")


async def leaving(
    server: Server, stage: str | None, leave: Callable[[], Awaitable[None]], within_s: float = SOON_S
) -> None:
    """Let somebody leave an idle server: it is idle again soon, counts that once, and answers the next as ever."""
    before = await server.idle()
    expected = await answer(server)
    await leave()
    await server.idle(within_s)
    assert await answer(server, within_s=within_s) == expected
    # now: before, nothing may have been in the queue yet, and idle says no more than that
    after = await server.idle(within_s)
    counts = {name: grown(after, before, "medusa_requests_cancelled_total", f"stage={name}") for name in STAGES}
    assert counts == {name: 1 if name == stage else 0 for name in STAGES}
    assert grown(after, before, "medusa_requests_total", "finish_reason=error") == 0


STAGES = ("queued", "prefill", "decode")


@ways
@streamed
def test_who_leaves_the_queue_is_forgotten_and_the_others_move_up(server: Server, stream: bool, abruptly: bool) -> None:
    async def run() -> None:
        before, expected = await server.idle(), await answer(server)
        blocker = await open_stream(server, ENDLESS)
        leaver = await Wire.connect(server.port)
        await leaver.send(COMPLETIONS, {**SMALL, "stream": stream})
        await gauge(server, "waiting", 1)
        next_one = asyncio.create_task(answer(server))
        await gauge(server, "waiting", 2)
        leaver.leave(abruptly)
        await gauge(server, "waiting", 1)
        blocker.leave(abruptly)
        assert await asyncio.wait_for(next_one, SOON_S) == expected

        after = await server.idle()
        assert grown(after, before, "medusa_requests_cancelled_total", "stage=queued") == 1
        assert grown(after, before, "medusa_requests_cancelled_total", "stage=decode") == 1
        assert grown(after, before, "medusa_requests_total", "finish_reason=abort") == 2
        assert grown(after, before, "medusa_requests_total", "finish_reason=length") == 2

    asyncio.run(run())


@ways
@pytest.mark.parametrize("events", [1, 40])
def test_who_leaves_a_stream_frees_the_worker(server: Server, events: int, abruptly: bool) -> None:
    async def leave() -> None:
        wire = await Wire.connect(server.port)
        await wire.send(COMPLETIONS, {**ENDLESS, "stream": True})
        assert (await wire.head()).status == 200
        incoming = wire.events()
        for _ in range(events):
            await anext(incoming)
        wire.leave(abruptly)

    asyncio.run(leaving(server, "decode", leave))


def test_who_leaves_in_the_second_of_two_answers_frees_the_worker(server: Server) -> None:
    async def leave() -> None:
        wire = await Wire.connect(server.port)
        await wire.send(
            COMPLETIONS, {**ENDLESS, "n": 2, "max_tokens": 40, "stream": True} | {"speculation": {"mode": "off"}}
        )
        assert (await wire.head()).status == 200
        async for event in wire.events():
            if event["choices"][0]["index"] == 1:
                break
        wire.leave()

    asyncio.run(leaving(server, "decode", leave))


@ways
def test_who_does_not_wait_for_a_whole_answer_frees_the_worker(server: Server, abruptly: bool) -> None:
    async def leave() -> None:
        wire = await Wire.connect(server.port)
        before = await server.metrics()
        await wire.send(COMPLETIONS, ENDLESS)
        while grown(await server.metrics(), before, "medusa_generation_tokens_total") < 30:
            await asyncio.sleep(0.01)
        wire.leave(abruptly)

    asyncio.run(leaving(server, "decode", leave))


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_who_leaves_with_the_last_chunk_was_answered(server: Server, path: str) -> None:
    body = {**SMALL, "stream": True}
    if path == CHAT:
        del body["prompt"]
        body["messages"] = [{"role": "user", "content": "What does textwrap.dedent do?"}]

    async def leave() -> None:
        wire = await Wire.connect(server.port)
        await wire.send(path, body)
        assert (await wire.head()).status == 200
        async for event in wire.events():
            if event["choices"][0]["finish_reason"] is not None:
                break
        wire.leave(abruptly=True)

    asyncio.run(leaving(server, None, leave))


def test_who_leaves_while_a_form_is_tried_never_enters_the_queue(server: Server) -> None:
    # takes the compiler a good part of a second
    schema = {"type": "object", "properties": {f"property_{number}": {"type": "string"} for number in range(3000)}}

    async def leave() -> None:
        wire = await Wire.connect(server.port)
        await wire.send(COMPLETIONS, {**SMALL, "structured_outputs": {"json": schema}})
        await asyncio.sleep(0.05)
        wire.leave()

    asyncio.run(leaving(server, "queued", leave))


@ways
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_who_leaves_while_the_body_is_sent_has_asked_nothing(server: Server, share: float, abruptly: bool) -> None:
    content = json.dumps({**SMALL, "prompt": "word " * 5000}).encode()
    start = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode()

    async def run() -> None:
        before = await server.idle()
        expected = await answer(server)
        wire = await Wire.connect(server.port)
        await wire.send_bytes(start + content[: int(len(content) * share)])
        await asyncio.sleep(0.05)
        wire.leave(abruptly)
        assert await answer(server, within_s=SOON_S) == expected
        await asyncio.sleep(0.1)
        after = await server.idle()
        assert grown(after, before, "medusa_requests_total") == 2
        assert grown(after, before, "medusa_requests_rejected_total") == 0, "nobody was turned away"
        assert grown(after, before, "medusa_http_requests_total", "status=500") == 0

    asyncio.run(run())


@streamed
def test_leaving_at_any_moment_of_a_long_prompt_leaves_nothing_behind(server: Server, stream: bool) -> None:
    """From before the request is read until after its first token, in steps: each stage is met, none does harm."""
    kind = "streamed" if stream else "whole"

    def prompt(number: int) -> str:
        return " ".join(f"{kind}{number}_{word}" for word in range(LONG_WORDS))

    async def run() -> None:
        started = time.monotonic()
        await answer(server, {**SMALL, "prompt": prompt(TRIES), "max_tokens": 24, "ignore_eos": True})
        whole_s = time.monotonic() - started
        before = await server.idle()
        for number in range(TRIES):
            asked = {**SMALL, "prompt": prompt(number), "max_tokens": 300, "ignore_eos": True, "stream": stream}
            wire = await Wire.connect(server.port)
            await wire.send(COMPLETIONS, asked)
            await asyncio.sleep(whole_s * number / TRIES)
            wire.leave(abruptly=number % 3 == 0)
            if number % 3 == 1:  # others come while the worker still hears of it
                assert (await ask(server.port, COMPLETIONS, SMALL)).status == 200
        after = await server.idle()
        counts = {name: grown(after, before, "medusa_requests_cancelled_total", f"stage={name}") for name in STAGES}
        print(counts)
        assert min(counts.values()) > 0, f"a stage was not met: {counts}"
        assert sum(counts.values()) <= TRIES

        # what was computed of them may be reused: it must be what is computed in one go
        for number in range(2, TRIES, 4):
            asked = {**SMALL, "prompt": prompt(number), "max_tokens": 20}
            reused = await ask(server.port, COMPLETIONS, asked)
            assert reused.json()["choices"] == (await computed_anew(server, asked)).json()["choices"]

    asyncio.run(run())


async def computed_anew(server: Server, asked: dict[str, Any]) -> Reply:
    """The same answer from a prompt of which no row is taken from the cache: scoring it computes all."""
    reply = await ask(server.port, COMPLETIONS, {**asked, "echo": True, "logprobs": 0})
    assert reply.status == 200, reply.content
    found = reply.json()
    assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    for choice in found["choices"]:
        choice["text"] = choice["text"].removeprefix(asked["prompt"])
        choice["logprobs"] = None
    return Reply(reply.head, json.dumps(found).encode())
