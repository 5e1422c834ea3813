"""A full queue turns clients away, tells them when to come again, and forgets nobody."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, RateLimitError

from tests.faults.live import Server, grown, serving
from tests.faults.traffic import COMPLETIONS, MODEL
from tests.faults.wire import Reply, Wire, ask

SMALL: dict[str, Any] = {"model": MODEL, "prompt": "def dedent(text):\n", "max_tokens": 12, "temperature": 0}
BUSY: dict[str, Any] = {**SMALL, "max_tokens": 900, "ignore_eos": True, "n": 64, "stream": True}


async def blocked(server: Server) -> Wire:
    """Keep the worker busy until the connection is left."""
    wire = await Wire.connect(server.port)
    await wire.send(COMPLETIONS, BUSY)
    assert (await wire.head()).status == 200
    return wire


@pytest.fixture(params=[0, 1, 32])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Server, int]]:
    """A server and how many requests may wait there; the one that all tests share takes 32."""
    if request.param == 32:
        yield request.getfixturevalue("server"), 32
        return
    with serving(tmp_path, "--queue-size", str(request.param)) as server:
        yield server, request.param


def test_the_bound_holds_and_everybody_inside_it_is_answered(queue: tuple[Server, int]) -> None:
    server, size = queue

    async def run() -> None:
        expected = (await ask(server.port, COMPLETIONS, SMALL)).json()["choices"]
        before = await server.idle()
        blocker = await blocked(server)
        asked = [asyncio.create_task(ask(server.port, COMPLETIONS, SMALL, within_s=100.0)) for _ in range(size + 8)]
        while len(refused := [task.result() for task in asked if task.done()]) < 8:
            await asyncio.sleep(0.01)
        assert len(refused) == 8
        for reply in refused:
            assert reply.status == 429 and reply.error["code"] == "queue_full", reply.content
            assert 1 <= int(reply.head.headers["retry-after"]) <= 60
        now = await server.metrics()
        assert (now["medusa_num_requests_running"], now["medusa_num_requests_waiting"]) == (1, size)
        assert now["medusa_queue_capacity"] == size

        blocker.leave()
        replies: list[Reply] = await asyncio.gather(*asked)
        answers = [reply.json()["choices"] for reply in replies if reply.status == 200]
        assert answers == [expected] * size
        after = await server.idle()
        assert grown(after, before, "medusa_requests_rejected_total", "reason=queue_full") == 8
        assert grown(after, before, "medusa_requests_total", "finish_reason=length") == size
        if size == 0:
            await _sdk_comes_again(server, expected[0]["text"])

    asyncio.run(run())


async def _sdk_comes_again(server: Server, expected: str) -> None:
    """OpenAI's client waits as it is told and is answered; one that must not try again says why."""
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="x", max_retries=8) as client:
        blocker = await blocked(server)
        with pytest.raises(RateLimitError, match="queue"):
            await client.with_options(max_retries=0).completions.create(**SMALL)
        patient = [asyncio.create_task(client.completions.create(**SMALL)) for _ in range(3)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in patient)
        blocker.leave()
        answers = await asyncio.wait_for(asyncio.gather(*patient), 90.0)
    assert [answer.choices[0].text for answer in answers] == [expected] * 3
