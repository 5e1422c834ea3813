import asyncio

import msgspec
import pytest

from medusa_core.errors import EngineError
from server.asking import to_generate
from server.schemas.completions import CompletionRequest
from server.worker.job import Job
from server.worker.messages import Done, FinishReason, TokenDelta
from tests.server.worker_info import INFO


class Owner:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None]] = []

    def skip(self, job: Job, index: int) -> None:
        self.asked.append(("skip", index))

    def cancel(self, job: Job) -> None:
        self.asked.append(("cancel", None))


def delta(token: int, reason: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(1, [token], None, None, reason, None)


def job(answers: int = 1, owner: Owner | None = None) -> Job:
    body = CompletionRequest.model_validate({"model": "m", "prompt": "p"})
    one = to_generate(body, [2], 5, INFO, None, False, None, [])
    numbered = [msgspec.structs.replace(one, id=number) for number in range(1, answers + 1)]
    return Job(numbered, owner if owner is not None else Owner())


def test_deltas_come_in_order_with_the_index_of_their_answer() -> None:
    async def scene() -> list[tuple[int, list[int]]]:
        one = job(answers=2)
        one.put(delta(5, "stop"))
        one.current = 1
        one.put(delta(6))
        one.put(delta(7, "length"))
        return [(index, each.tokens) async for index, each in one]

    assert asyncio.run(scene()) == [(0, [5]), (1, [6]), (1, [7])]


def test_what_the_worker_says_after_the_end_reaches_nobody() -> None:
    async def scene() -> None:
        one = job()
        one.put(delta(5))
        one.put(EngineError("no"))
        one.put(delta(6))
        one.put(Done(1))
        assert (await anext(one))[1].tokens == [5]
        with pytest.raises(EngineError, match="no"):
            await anext(one)
        assert one._inbox.empty()

    asyncio.run(scene())


def test_the_stage_follows_the_worker_and_the_end_stops_the_clock() -> None:
    async def scene() -> None:
        one = job()
        one.timer = asyncio.get_running_loop().call_later(60, pytest.fail, "the job had ended")
        assert one.stage == "queued"
        one.put(delta(5))
        assert (one.stage, one.timer.cancelled()) == ("decode", False)
        one.put(delta(6, "length"))
        assert (one.stage, one.timer.cancelled()) == ("ended", True)

    asyncio.run(scene())


def test_its_owner_is_asked_to_skip_and_to_cancel() -> None:
    owner = Owner()
    one = job(owner=owner)
    one.skip(0)
    one.cancel()

    assert owner.asked == [("skip", 0), ("cancel", None)]
