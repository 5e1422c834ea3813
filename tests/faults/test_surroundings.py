"""A machine that misbehaves around the server: full disks, clocks that jump, files that cannot be opened."""

import asyncio
import fcntl
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.live import Server, environment, ready, serving
from tests.faults.traffic import CHAT, COMPLETIONS, MODEL
from tests.faults.wire import Wire, ask, get

SMALL: dict[str, Any] = {"model": MODEL, "prompt": "def dedent(text):\n", "max_tokens": 12, "temperature": 0}
REFUSED: dict[str, Any] = {**SMALL, "max_tokens": -1}
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
DAY_S = 86400


async def works(server: Server) -> None:
    """Answers, refuses, streams, and lets a client leave: all that writes to the log."""
    reply = await ask(server.port, COMPLETIONS, SMALL)
    assert reply.status == 200 and reply.json()["choices"][0]["text"] != ""
    assert (await ask(server.port, COMPLETIONS, REFUSED)).status == 400
    async with await Wire.connect(server.port) as wire:
        await wire.send(COMPLETIONS, {**SMALL, "stream": True})
        assert (await wire.head()).status == 200
        text = "".join([event["choices"][0]["text"] async for event in wire.events()])
    assert text == reply.json()["choices"][0]["text"]
    async with await Wire.connect(server.port) as wire:
        await wire.send(COMPLETIONS, {**SMALL, "n": 64, "max_tokens": 500})
        await asyncio.sleep(0.2)
    await server.idle()


def test_a_log_on_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full, serving(tmp_path, stderr=full) as server:
        asyncio.run(works(server))


def test_a_log_that_nobody_reads_any_more_stops_nothing(tmp_path: Path) -> None:
    """As under `medusa serve 2>&1 | head`: the reader goes and the pipe breaks."""
    reading, writing = os.pipe()
    with serving(tmp_path, "--log-level", "debug", stderr=writing) as server:
        os.close(writing)
        os.close(reading)
        asyncio.run(works(server))


def test_a_log_that_a_stuck_reader_holds_open_stops_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with serving(tmp_path, "--log-level", "debug", stderr=writing) as server:
        os.close(writing)
        for _ in range(5):
            asyncio.run(works(server))
    os.close(reading)


def test_everything_closed_and_nothing_writable_is_enough(tmp_path: Path) -> None:
    """stdin and stdout closed, no HOME, a working directory and a temporary folder that cannot be written."""
    environ = environment(TMPDIR="/proc/nowhere", HF_HOME="/proc/nowhere", XDG_CACHE_HOME="/proc/nowhere")
    for name in ("HOME", "USER", "LOGNAME"):
        environ.pop(name, None)
    # root writes wherever there is a disk; below /proc nobody does
    with serving(tmp_path, environ=environ, cwd="/proc", wrapper=("sh", "-c", 'exec "$@" <&- >&-', "sh")) as server:
        asyncio.run(works(server))


def test_more_clients_than_files_wait_and_are_answered(tmp_path: Path) -> None:
    """64 files, of which the server needs some: who finds none waits, probes come back, the log stays short."""
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))}

    async def run(server: Server) -> None:
        reply = await ask(server.port, COMPLETIONS, SMALL)
        idle = [await asyncio.wait_for(Wire.connect(server.port), 10.0) for _ in range(150)]
        await asyncio.sleep(2.0)
        # its worker can die now, too: there are files left for the pipe of the next one
        os.kill(server.worker, signal.SIGKILL)
        await asyncio.sleep(1.0)
        for wire in idle:
            wire.leave()
        await ready(server)
        again = await ask(server.port, COMPLETIONS, SMALL, within_s=30.0)
        assert again.json()["choices"] == reply.json()["choices"]
        assert (await get(server.port, "/health")).status == 200
        lines = server.log.count("\n")
        print(f"{lines} lines of log")
        assert lines < 500, "a log that fills the disk is the next fault"

    with serving(tmp_path, **limited) as server:
        asyncio.run(run(server))


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs Debian's faketime, which `make tools` installs")
def test_a_clock_that_jumps_changes_no_answer_and_no_duration(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environ = environment(
        LD_PRELOAD=str(FAKETIME),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        # what timers run by goes on as it did, as on a machine whose clock is set
        DONT_FAKE_MONOTONIC="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    chat = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What does textwrap.dedent do?"}],
        "temperature": 0,
    }

    async def run(server: Server) -> None:
        first = (await ask(server.port, CHAT, chat)).json()
        assert abs(first["created"] - time.time()) < 60
        for jump in (DAY_S, -DAY_S, 0):
            async with await Wire.connect(server.port) as kept, await Wire.connect(server.port) as streamed:
                await kept.send(COMPLETIONS, SMALL)
                assert (await kept.reply()).status == 200
                # in the middle of a stream
                await streamed.send(CHAT, {**chat, "stream": True, "n": 4, "temperature": 1, "seed": 3})
                assert (await streamed.head()).status == 200
                events = streamed.events()
                await anext(events)
                clock.write_text(f"{jump:+d}")
                assert [event async for event in events][-1]["choices"][0]["finish_reason"] is not None
                answer = (await ask(server.port, CHAT, chat)).json()
                assert answer["choices"] == first["choices"]
                assert abs(answer["created"] - time.time() - jump) < 60, "the clock did not jump, nothing was tested"
                # a connection that was kept open is still open, and a time limit is still as long as it was
                assert kept.can_go_on
                await kept.send(COMPLETIONS, {**SMALL, "timeout_s": 60})
                assert (await kept.reply()).status == 200
                late = await ask(server.port, COMPLETIONS, {**SMALL, "n": 64, "max_tokens": 500, "timeout_s": 0.3})
                assert late.status == 504
        now = await server.metrics()
        durations = {name: value for name, value in now.items() if name.partition(" ")[0].endswith("_seconds_sum")}
        assert len(durations) > 5
        for name, value in durations.items():
            assert 0 <= value < 600, (name, value)
        assert (await server.health())["state"] == "ready"
        assert now["medusa_worker_restarts_total reason=hang"] == 0

    with serving(tmp_path, environ=environ) as server:
        asyncio.run(run(server))
