import asyncio
import multiprocessing
import signal
import threading

import pytest

from server.worker.child import Child
from server.worker.messages import Done, FromWorker, Ready, Shutdown
from tests.server import fake_engine
from tests.server.worker.test_process import generate
from tests.server.worker_info import LOAD


def test_a_child_says_what_it_does_until_it_is_gone() -> None:
    heard: list[FromWorker] = []

    async def scene() -> Child:
        ready, done, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

        def hear(message: FromWorker) -> None:
            assert threading.current_thread() is threading.main_thread()
            heard.append(message)
            if isinstance(message, Ready | Done):
                (ready if isinstance(message, Ready) else done).set()

        child = Child(fake_engine.FACTORY, hear, gone.set, longest_look_s=1.0)
        assert child.send(LOAD)
        await asyncio.wait_for(ready.wait(), 60)
        assert child.send(generate(3))
        await asyncio.wait_for(done.wait(), 60)
        assert child.silent_s() < 60 and child.exit_code is None
        assert child.send(Shutdown())
        await asyncio.wait_for(gone.wait(), 60)
        assert await child.has_ended(within_s=60)
        return child

    child = asyncio.run(scene())
    child.close()

    assert (child.exit_code, child.send(Shutdown())) == (0, False)
    assert Done(3) in heard


def test_a_child_that_is_killed_tells_by_its_exit_code() -> None:
    async def scene() -> int | None:
        gone = asyncio.Event()
        child = Child(fake_engine.FACTORY, lambda message: None, gone.set, longest_look_s=1.0)
        assert not await child.has_ended(within_s=0.0)
        child.kill()
        await asyncio.wait_for(gone.wait(), 60)
        assert await child.has_ended(within_s=60)
        child.close()
        return child.exit_code

    assert asyncio.run(scene()) == -signal.SIGKILL


def test_a_system_without_room_for_a_thread_has_none_for_a_child() -> None:
    before = set(multiprocessing.active_children())

    async def scene() -> None:
        # more than any address space
        usual = threading.stack_size(1 << 47)
        try:
            with pytest.raises(OSError, match="would not be heard"):
                Child(fake_engine.FACTORY, lambda message: None, lambda: None, longest_look_s=1.0)
        finally:
            threading.stack_size(usual)

    asyncio.run(scene())

    assert set(multiprocessing.active_children()) <= before
