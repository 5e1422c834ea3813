import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import pytest
from msgspec.structs import replace

from server.worker.messages import (
    Cancel,
    Done,
    Failed,
    FromWorker,
    Generate,
    LoadFailed,
    Ready,
    Sampling,
    Shutdown,
    Speculation,
    TokenDelta,
    decode_from_worker,
    encode,
)
from server.worker.process import run
from tests.server import fake_engine
from tests.server.worker_info import LOAD

Worker = tuple[SpawnProcess, Connection]


def generate(number: int, seed: int | None = None) -> Generate:
    sampling = Sampling(0.0, 1.0, None, 0.0, seed, 0, 1.0, 0.0, 0.0, [], 0)
    speculation = Speculation("auto", None, "exact", 0.09, 0.3)
    return Generate(number, list(range(2, 12)), sampling, speculation, None, [], False, None, False, None, [], None)


def receive(connection: Connection) -> FromWorker:
    assert connection.poll(20), "the worker is silent"
    return decode_from_worker(connection.recv_bytes())


def until_the_end(connection: Connection) -> list[FromWorker]:
    messages = [receive(connection)]
    while not isinstance(messages[-1], Done | Failed | Ready | LoadFailed):
        messages.append(receive(connection))
    return messages


@pytest.fixture
def worker() -> Iterator[Worker]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(theirs, fake_engine.FACTORY), daemon=True)
    process.start()
    theirs.close()
    yield process, ours
    ours.close()
    process.join(20)
    assert process.exitcode is not None, "a worker without a server ends"
    process.close()


def load(connection: Connection, heads: str | None = None) -> FromWorker:
    asked = replace(LOAD, model="tiny", heads=heads)
    connection.send_bytes(encode(asked))
    return until_the_end(connection)[-1]


def test_one_answer_after_another_then_an_orderly_end(worker: Worker) -> None:
    process, connection = worker
    assert isinstance(load(connection), Ready)

    for number in (1, 2):
        connection.send_bytes(encode(generate(number)))
        *deltas, done = until_the_end(connection)
        tokens = [token for delta in deltas if isinstance(delta, TokenDelta) for token in delta.tokens]
        assert tokens == [*range(2, 12), fake_engine.EOS]
        assert done == Done(number)

    connection.send_bytes(encode(Shutdown()))
    process.join(20)
    assert process.exitcode == 0


def test_a_cancel_ends_the_answer_before_its_next_step(worker: Worker) -> None:
    _, connection = worker
    load(connection)
    connection.send_bytes(encode(generate(7, seed=fake_engine.ENDLESS)))
    receive(connection)
    connection.send_bytes(encode(Cancel(7)))
    messages = until_the_end(connection)

    # one step may have begun before the message was there, a few more where the machine is busy; without it, hundreds
    assert len(messages) < 10
    assert messages[-1] == Done(7)


def test_a_cancel_of_another_answer_changes_nothing(worker: Worker) -> None:
    _, connection = worker
    load(connection)
    connection.send_bytes(encode(Cancel(6)))
    connection.send_bytes(encode(generate(7)))
    connection.send_bytes(encode(Cancel(6)))

    assert sum(len(m.tokens) for m in until_the_end(connection) if isinstance(m, TokenDelta)) == 11


@pytest.mark.parametrize(
    ("seed", "name"), [(fake_engine.REFUSE, "InvalidParameter"), (fake_engine.FAIL, "EngineError")]
)
def test_a_failure_is_told_by_its_class_and_the_worker_lives_on(worker: Worker, seed: int, name: str) -> None:
    _, connection = worker
    load(connection)
    connection.send_bytes(encode(generate(1, seed)))
    failed = until_the_end(connection)[-1]
    assert isinstance(failed, Failed)
    assert failed.error.name == name

    connection.send_bytes(encode(generate(2)))
    assert until_the_end(connection)[-1] == Done(2)


def test_nothing_can_be_asked_of_the_operators_terminal(worker: Worker) -> None:
    process, connection = worker
    load(connection)

    assert os.readlink(f"/proc/{process.pid}/fd/0") == os.devnull


def test_a_load_that_fails_is_told_and_ends_the_worker(worker: Worker) -> None:
    process, connection = worker
    failed = load(connection, fake_engine.MISFIT)

    assert isinstance(failed, LoadFailed)
    assert failed.error.name == "HeadsMismatch"
    process.join(20)
    assert process.exitcode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_servers_business(worker: Worker, number: int) -> None:
    process, connection = worker
    load(connection)
    assert process.pid is not None
    os.kill(process.pid, number)

    connection.send_bytes(encode(generate(1)))
    assert until_the_end(connection)[-1] == Done(1)
