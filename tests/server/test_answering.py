import asyncio

import msgspec
import pytest
from starlette.types import Message

from medusa_core.errors import InvalidParameter
from server.answering import ClientGone, fingerprint, unless_gone
from tests.server.worker_info import INFO


def test_the_fingerprint_names_what_a_seeded_answer_depends_on() -> None:
    same = msgspec.structs.replace(INFO, heads="others", tree_nodes=64, max_context=50)
    others = [msgspec.structs.replace(INFO, **{field: "x"}) for field in ("model", "dtype", "device")]

    assert fingerprint(same) == fingerprint(INFO)
    assert len({fingerprint(info) for info in (INFO, *others)}) == 4


def test_work_ends_when_the_client_leaves() -> None:
    async def scene() -> bool:
        was_cancelled = False

        async def work() -> None:
            nonlocal was_cancelled
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                was_cancelled = True
                raise

        async def receive() -> Message:
            await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        with pytest.raises(ClientGone):
            await unless_gone(receive, work())
        return was_cancelled

    assert asyncio.run(scene())


def test_work_that_ends_first_gives_its_result_or_its_error() -> None:
    async def scene() -> None:
        async def receive() -> Message:
            await asyncio.sleep(10)
            raise AssertionError

        async def fail() -> None:
            raise InvalidParameter("no")

        assert await unless_gone(receive, asyncio.sleep(0, "done")) == "done"
        with pytest.raises(InvalidParameter):
            await unless_gone(receive, fail())

    asyncio.run(scene())
