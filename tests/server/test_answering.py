import asyncio
import dataclasses
import threading
import time
from pathlib import Path

import msgspec
import pytest
from starlette.requests import Request
from starlette.types import Message

from medusa_core.errors import InvalidParameter, RequestTimeout, UnknownModel
from medusa_core.text import TextCodec
from server.answering import Answering, ClientGone, ServedNames, fingerprint, unless_gone
from server.exchange import EXCHANGE, Exchange
from server.grammars import Grammars
from server.metrics import Metrics
from server.schemas.common import GenerationFields
from server.worker.client import WorkerClient
from server.worker.supervisor import WorkerState
from tests.server.worker_info import INFO, LOAD
from tests.tiny_tokenizers import save_byte_level


def test_a_model_goes_by_each_of_its_names_and_by_any_other_only_where_that_is_allowed() -> None:
    some, every = ServedNames(("m", "alias")), ServedNames(("m", "alias"), takes_any=True)

    some.check("alias")
    every.check("gpt-4o")
    with pytest.raises(UnknownModel, match="m, alias"):
        some.check("gpt-4o")
    assert every.shown == "m"


def test_the_fingerprint_names_what_a_seeded_answer_depends_on() -> None:
    same = msgspec.structs.replace(INFO, heads="others", tree_nodes=64, max_context=50)
    fields = ("model", "dtype", "device", "quantization", "adapter")
    others = [msgspec.structs.replace(INFO, **{field: "x"}) for field in fields]

    assert fingerprint(same) == fingerprint(INFO)
    assert len({fingerprint(info) for info in (INFO, *others)}) == 6


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


def answering(metrics: Metrics, queue_size: int, codec: TextCodec) -> Answering:
    worker = WorkerClient(LOAD, queue_size, metrics, step_timeout_s=None)
    worker.supervisor.info, worker.supervisor.state = INFO, WorkerState("ready", "", 1.0)
    return Answering(worker, codec, Grammars(codec), metrics, ServedNames(("m",)), 0, timeout_s=0.2)


@pytest.mark.parametrize(("timeout_s", "leaves", "error"), [(None, False, RequestTimeout), (9.0, True, ClientGone)])
def test_preparing_a_request_ends_with_its_time_and_its_client(
    tmp_path: Path, timeout_s: float | None, leaves: bool, error: type[Exception]
) -> None:
    metrics = Metrics("m", 1)
    codec = TextCodec.load(str(save_byte_level(tmp_path)))
    proceed = threading.Event()

    async def receive() -> Message:
        await asyncio.sleep(0.05 if leaves else 60)
        return {"type": "http.disconnect"}

    async def scene() -> None:
        request = Request({"type": "http", EXCHANGE: Exchange("id", time.monotonic())}, receive)
        body = GenerationFields(model="m", timeout_s=timeout_s)
        try:
            with pytest.raises(error):
                await answering(metrics, 1, codec).prepare(request, body, proceed.wait)
        finally:
            proceed.set()

    asyncio.run(scene())
    assert (b'medusa_requests_cancelled_total{stage="queued"} 1.0' in metrics.expose()) == leaves


def test_forms_that_take_long_leave_threads_for_requests_without_one(tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    prepares = dataclasses.replace(answering(Metrics("m", 1), 1, TextCodec.load(str(tmp_path), None)), timeout_s=20.0)
    go_on, begun = threading.Event(), []

    async def scene() -> None:
        async def receive() -> Message:
            await asyncio.sleep(60)
            raise AssertionError

        def request() -> Request:
            scope = {"type": "http", "headers": [], EXCHANGE: Exchange("id", time.monotonic())}
            return Request(scope, receive)

        def compile_form() -> None:
            begun.append(1)
            go_on.wait(20)

        formed, plain = GenerationFields(model="m", guided_regex="a"), GenerationFields(model="m")
        forms = [asyncio.create_task(prepares.prepare(request(), formed, compile_form)) for _ in range(40)]
        while len(begun) < 2:
            await asyncio.sleep(0.001)
        forms[0].cancel()  # its thread goes on, so its place is not free
        await asyncio.wait(forms[:1])
        assert await prepares.prepare(request(), plain, lambda: "prepared") == "prepared"
        assert len(begun) == 2
        go_on.set()
        await asyncio.gather(*forms, return_exceptions=True)
        assert len(begun) == 40

    asyncio.run(scene())
