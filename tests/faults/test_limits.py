"""Requests that ask for too much, or for what takes too long: they are refused or ended, and others go on."""

import asyncio
import json
from typing import Any

import pytest

from tests.faults.live import Server, grown
from tests.faults.traffic import COMPLETIONS, MODEL
from tests.faults.wire import Wire, ask

SMALL: dict[str, Any] = {"model": MODEL, "prompt": "def dedent(text):\n", "max_tokens": 12, "temperature": 0}
ENDLESS: dict[str, Any] = {**SMALL, "max_tokens": 900, "ignore_eos": True, "n": 64}
# Compiling a form may take two seconds; more is the machine's.
BUDGET_S = 20.0


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(levels: int) -> dict[str, Any]:
    """Each level holds the next one twice."""
    twice = {
        f"level{level}": {
            "type": "array",
            "prefixItems": [{"$ref": f"#/$defs/level{level + 1}"}] * 2,
            "minItems": 2,
            "items": False,
        }
        for level in range(levels)
    }
    return {"$ref": "#/$defs/level0", "$defs": {**twice, f"level{levels}": {"type": "null"}}}


def long_choice() -> dict[str, Any]:
    return {"enum": [f"value {number}" for number in range(50_000)]}


# Forms and what may become of them.
HOSTILE: dict[str, tuple[dict[str, Any], set[int]]] = {
    "nested 500 deep": ({"json": nested(500)}, {400}),
    "nested 50,000 deep": ({"json": '{"type":"array","items":' * 50_000 + "{}" + "}" * 50_000}, {400}),
    "3,000 properties": ({"json": {"properties": {f"p{n}": {"type": "string"} for n in range(3000)}}}, {200, 400}),
    "one of 50,000 strings": ({"json": long_choice()}, {200, 400}),
    "itself": ({"json": {"$ref": "#"}}, {400}),
    "doubled 30 times": ({"json": doubling(30)}, {200, 400}),
    "repeats of repeats": ({"regex": "^(a{1,1000}){1,1000}$"}, {200, 400}),
    "nested choices": ({"regex": "((((a|b)*|c)*|d)*|e)*" * 100}, {200, 400}),
    "look-around": ({"regex": "(?=a)b"}, {400}),
    "no expression": ({"regex": "(" * 10_000}, {400}),
    "endless rule": ({"grammar": "start: start start | start"}, {400}),
    "ambiguous rule": ({"grammar": 'start: e\ne: e e | "a" | "b" | e "c" e'}, {200, 400}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_form_is_refused_or_followed_within_its_budget(server: Server, name: str) -> None:
    form, statuses = HOSTILE[name]

    async def run() -> None:
        worker = server.worker
        expected = (await ask(server.port, COMPLETIONS, SMALL)).json()["choices"]
        body = {**SMALL, "structured_outputs": form}
        hostile = [asyncio.create_task(ask(server.port, COMPLETIONS, body, within_s=4 * BUDGET_S)) for _ in range(3)]
        for _ in range(3):  # meanwhile
            assert (await ask(server.port, COMPLETIONS, SMALL, within_s=BUDGET_S)).json()["choices"] == expected
            assert (await server.health())["state"] == "ready"
        for reply in await asyncio.gather(*hostile):
            assert reply.status in statuses, reply.content[:1000]
            assert len(reply.content) < 20_000, "the answer quotes what it refuses"
        await server.idle()
        assert server.worker == worker

    asyncio.run(run())


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"n": 1_000_000}, 400),
        ({"n": 2**70}, 400),
        ({"n": -1}, 400),
        ({"n": "5"}, 400),
        ({"n": True}, 400),
        ({"best_of": 10**9}, 400),
        ({"max_tokens": 10**9}, 200),
        ({"max_tokens": 2**70}, 400),
        ({"max_tokens": -(2**70)}, 400),
        ({"logprobs": 2**31}, 400),
        ({"prompt": "word " * 100_000}, 400),
        ({"prompt": ["x"] * 1000}, 400),
        ({"stop": ["x"] * 1000}, 400),
        ({"timeout_s": 1e300}, 200),
    ],
    ids=str,
)
def test_huge_numbers_are_refused_or_cut_to_what_there_is(server: Server, more: dict[str, Any], status: int) -> None:
    async def run() -> None:
        reply = await ask(server.port, COMPLETIONS, {**SMALL, **more})
        assert reply.status == status, reply.content[:500]
        if status == 400:
            assert reply.error["param"] == next(iter(more))

    asyncio.run(run())


STAGES = {
    # in the queue, nobody has looked at it
    "queued": ({**SMALL}, 503, "deadline_exceeded_in_queue"),
    # the scores of 1,600 tokens are not computed in so short a time
    "prefill": ({**SMALL, "prompt": "x = 1\n" * 400, "echo": True, "logprobs": 20}, 504, "deadline_exceeded"),
    "decode": ({**ENDLESS}, 504, "deadline_exceeded"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_time_limit_ends_a_request_wherever_it_is(server: Server, stage: str, stream: bool) -> None:
    body, status, code = STAGES[stage]

    async def run() -> None:
        before = await server.idle()
        expected = (await ask(server.port, COMPLETIONS, SMALL)).json()["choices"]
        blocker = await Wire.connect(server.port)
        if stage == "queued":
            await blocker.send(COMPLETIONS, {**ENDLESS, "stream": True})
            assert (await blocker.head()).status == 200
        limited = {**body, "timeout_s": 0.05 if stage == "prefill" else 0.8, "stream": stream}
        async with await Wire.connect(server.port) as wire:
            await wire.send(COMPLETIONS, limited)
            head = await wire.head()
            if head.status == 200:
                # what has begun to stream can only end with an event
                assert stream and stage == "decode"
                error = [event async for event in wire.events()][-1]["error"]
            else:
                assert head.status == status
                error = json.loads(b"".join([part async for part in wire.parts()]))["error"]
        assert error["code"] == code
        blocker.leave()
        after = await server.idle()
        # what has not even reached the queue is no request to the model
        counted = grown(after, before, "medusa_requests_total", "finish_reason=timeout")
        assert counted == 1 or (counted == 0 and stage == "prefill")
        assert grown(after, before, "medusa_requests_cancelled_total") == (1 if stage == "queued" else 0)
        assert (await ask(server.port, COMPLETIONS, SMALL)).json()["choices"] == expected

    asyncio.run(run())
