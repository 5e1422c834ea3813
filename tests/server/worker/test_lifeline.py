import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection

import pytest

from server.worker.lifeline import end_with_parent
from tests.faults.live import is_running


def sleeper(connection: Connection) -> None:
    """A child that says its name, then hangs."""
    end_with_parent()
    connection.send(os.getpid())
    time.sleep(600)


def parent(connection: Connection) -> None:
    """Start a child, say its name, and wait to be killed."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    multiprocessing.get_context("spawn").Process(target=sleeper, args=(theirs,)).start()
    connection.send(ours.recv())
    time.sleep(600)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_child_ends_with_its_parent_even_while_it_is_stopped(is_stopped: bool) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=parent, args=(theirs,))
    process.start()
    assert ours.poll(30)
    child = ours.recv()
    if is_stopped:
        os.kill(child, signal.SIGSTOP)

    process.kill()
    process.join()
    deadline = time.monotonic() + 20
    while is_running(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)
