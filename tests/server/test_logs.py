import asyncio
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.logs import LevelSwitch, LogLevel, Rendering, SteadyStream, bind, bound, create_handler, rendering_of

ROOT = Path(__file__).parents[2]
EVIL = "tiny\n2026-11-26T00:00:00Z [error    ] forged\r\x1b[2J\x9b31m\u2028\u202e\ud800"

renderings = pytest.mark.parametrize("rendering", ["console", "json"])


@contextmanager
def logging_to(file: Path, rendering: Rendering) -> Iterator[logging.Logger]:
    """A logger of its own that writes to a file."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    logger = logging.Logger("medusa.test")
    logger.addHandler(create_handler(SteadyStream(descriptor), rendering, "server"))
    try:
        yield logger
    finally:
        os.close(descriptor)


def test_a_line_of_json_tells_when_who_and_what_in_this_order(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", "json") as logger, bound(request_id="abc", trace_id=None):
        logger.info("a %s came", "request", extra={"status": 200})
    (line,) = (tmp_path / "log").read_text().splitlines()
    told = json.loads(line)

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", told.pop("timestamp"))
    assert list(told.items()) == [
        ("level", "info"),
        ("event", "a request came"),
        ("logger", "medusa.test"),
        ("process", "server"),
        ("request_id", "abc"),
        ("status", 200),
    ]


def test_a_line_for_people_tells_the_same(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", "console") as logger, bound(request_id="abc"):
        logger.info("a %s came", "request", extra={"status": 200, "reason": "two words"})
    text = (tmp_path / "log").read_text()

    assert re.fullmatch(
        r"\S+Z \[info     \] a request came \[medusa.test\] process=server request_id=abc status=200 "
        r"reason='two words'\n",
        text,
    )


@renderings
def test_no_text_can_forge_a_line_or_move_the_cursor(tmp_path: Path, rendering: Rendering) -> None:
    with logging_to(tmp_path / "log", rendering) as logger, bound(request_id=EVIL):
        logger.info(EVIL, extra={"model": EVIL, "several": [EVIL], EVIL: 1})
        logger.error("%s", EVIL)
    lines = (tmp_path / "log").read_text().split("\n")

    assert len(lines) == 3 and lines[-1] == ""
    assert all(line.isprintable() for line in lines)
    assert all("forged" in line for line in lines[:2])
    if rendering == "json":
        assert json.loads(lines[0])["model"] == EVIL


@pytest.mark.parametrize(
    ("variables", "before", "colours"),
    [
        ({"TERM": "xterm"}, "\r\x1b[2K", True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "\r\x1b[2K", False),
        ({"TERM": "dumb"}, "2", False),
    ],
)
def test_a_line_takes_the_place_of_the_other_process_s_bar_where_a_terminal_can_do_that(
    variables: dict[str, str], before: str, colours: bool
) -> None:
    code = "import logging; from server.logs import configure_logs; configure_logs('console', 'info', 'worker')\n"
    ours, theirs = pty.openpty()
    environment = {**{name: value for name, value in os.environ.items() if name != "NO_COLOR"}, **variables}
    command = [sys.executable, "-c", code + "logging.getLogger('medusa').info('here')"]
    subprocess.run(command, cwd=ROOT, env=environment, stderr=theirs, check=True)
    os.close(theirs)
    line = os.read(ours, 65536).decode()
    os.close(ours)

    assert "here" in line and line.startswith(before)
    assert ("\x1b[" in line.removeprefix(before)) == colours


def test_a_traceback_for_people_is_indented_so_that_its_message_is_no_line(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", "console") as logger:
        try:
            raise ValueError(EVIL)
        except ValueError:
            logger.exception("it failed")
    first, *trace, end = (tmp_path / "log").read_text().split("\n")

    assert "it failed" in first and end == ""
    assert "ValueError: tiny" in "\n".join(trace)
    assert all(line.startswith("    ") and line.isprintable() for line in trace)


def test_a_traceback_of_json_is_structured_and_shows_no_variable(tmp_path: Path) -> None:
    def fail(prompt: str) -> None:
        try:
            raise KeyError("cause")
        except KeyError as cause:
            raise ValueError("it broke") from cause

    with logging_to(tmp_path / "log", "json") as logger:
        try:
            fail("a secret question")
        except ValueError:
            logger.exception("it failed")
    text = (tmp_path / "log").read_text()
    told = json.loads(text)

    assert [(one["exc_type"], one["exc_value"]) for one in told["exception"]] == [
        ("ValueError", "it broke"),
        ("KeyError", "'cause'"),
    ]
    assert told["exception"][0]["frames"][-1]["name"] == "fail"
    assert "a secret question" not in text


@renderings
def test_a_line_that_cannot_be_rendered_is_told_without_what_it_holds(tmp_path: Path, rendering: Rendering) -> None:
    with logging_to(tmp_path / "log", rendering) as logger:
        logger.info("%d", "a secret question")
    text = (tmp_path / "log").read_text()

    assert json.loads(text)["logger"] == "medusa.test"
    assert "secret" not in text


def test_what_is_bound_to_one_task_is_not_said_of_another(tmp_path: Path) -> None:
    async def handle(logger: logging.Logger, name: str) -> None:
        bind(request_id=name)
        await asyncio.sleep(0)
        await asyncio.to_thread(logger.info, name)

    async def scene(logger: logging.Logger) -> None:
        await asyncio.gather(*(handle(logger, name) for name in "ab"))
        logger.info("after")

    with logging_to(tmp_path / "log", "json") as logger:
        asyncio.run(scene(logger))
    told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]

    assert {line["event"]: line.get("request_id") for line in told} == {"a": "a", "b": "b", "after": None}


def test_what_is_bound_takes_the_place_of_what_was(tmp_path: Path) -> None:
    async def scene(logger: logging.Logger) -> None:
        bind(request_id="first", trace_id="of the first")
        bind(request_id="second")
        logger.info("spoken")

    with logging_to(tmp_path / "log", "json") as logger:
        asyncio.run(scene(logger))
    line = json.loads((tmp_path / "log").read_text())

    assert (line["request_id"], line.get("trace_id")) == ("second", None)


def test_the_format_is_made_for_programs_where_no_terminal_is() -> None:
    assert rendering_of("console") == "console"
    assert rendering_of("json") == "json"
    assert rendering_of("auto") == ("console" if os.isatty(2) else "json")


def stuck_pipe(left_free: int) -> tuple[int, int]:
    """A pipe whose reader has stopped: full but for so many bytes."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    if left_free > 0:
        os.read(reading, left_free)
    return reading, writing


def test_nobody_waits_for_a_reader_who_is_stuck_and_what_was_lost_is_told_when_he_reads_again() -> None:
    reading, writing = stuck_pipe(left_free=0)
    logger = logging.Logger("medusa.test")
    logger.addHandler(create_handler(SteadyStream(writing), "json", "server"))
    for number in range(3):
        logger.info("lost %d", number)
    os.read(reading, 1 << 20)
    logger.info("kept")
    logger.info("last")
    told = [json.loads(line) for line in os.read(reading, 65536).splitlines()]
    os.close(reading)
    os.close(writing)

    assert [line["event"][:17] for line in told] == ["kept", "lines of the log ", "last"]
    assert told[1]["lines"] == 3


def test_a_line_that_was_cut_is_ended_before_the_next(tmp_path: Path) -> None:
    reading, writing = stuck_pipe(left_free=8192)
    stream = SteadyStream(writing)
    stream.write("a" * 20_000 + "\n")
    os.read(reading, 1 << 20)
    stream.write("b\n")
    rest = os.read(reading, 1 << 20)
    os.close(reading)
    os.close(writing)

    assert stream.lost == 1
    assert rest == b"\nb\n"


@pytest.mark.parametrize("fault", ["full", "closed", "nobody reads"])
def test_a_stream_that_fails_raises_nothing(fault: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    if fault != "nobody reads":
        os.close(writing)
    descriptor = os.open("/dev/full", os.O_WRONLY) if fault == "full" else writing
    stream = SteadyStream(descriptor)

    assert stream.write("line\n") == 5
    assert stream.lost == 1
    assert not stream.isatty() and stream.writable() and stream.fileno() == descriptor
    if fault != "closed":
        os.close(descriptor)


def run_in_a_process(code: str) -> list[dict[str, Any]]:
    words = [sys.executable, "-c", code]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    return [json.loads(line) for line in said.splitlines()]


def test_libraries_are_never_heard_below_warning_for_they_tell_what_they_send() -> None:
    told = run_in_a_process(
        "import logging, warnings; from server.logs import configure_logs\n"
        "configure_logs('json', 'debug', 'server')\n"
        "for name in ('sse_starlette.sse', 'medusa.access', 'medusa_core.engine', 'uvicorn.error'):\n"
        "    logging.getLogger(name).debug('chunk'); logging.getLogger(name).info(name)\n"
        "warnings.warn('beware'); logging.getLogger('httpx').warning('late')\n"
    )

    assert [(line["logger"], line["level"]) for line in told] == [
        ("medusa.access", "debug"),
        ("medusa.access", "info"),
        ("medusa_core.engine", "debug"),
        ("medusa_core.engine", "info"),
        ("uvicorn.error", "info"),
        ("py.warnings", "warning"),
        ("httpx", "warning"),
    ]


def test_a_stricter_level_holds_for_libraries_too() -> None:
    told = run_in_a_process(
        "import logging; from server.logs import configure_logs\n"
        "configure_logs('json', 'error', 'server')\n"
        "for name in ('httpx', 'medusa.worker', 'uvicorn.error'):\n"
        "    logging.getLogger(name).warning(name); logging.getLogger(name).error(name)\n"
    )

    assert [line["level"] for line in told] == ["error"] * 3


def test_a_crash_is_a_line_of_the_log() -> None:
    code = (
        "from server.logs import ToldCrash, configure_logs\n"
        "configure_logs('json', 'error', 'worker')\n"
        "with ToldCrash(): raise ValueError('void')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    told = json.loads(ended.stderr)

    assert ended.returncode == 1
    assert (told["level"], told["process"], told["exception"][0]["exc_type"]) == ("critical", "worker", "ValueError")


@pytest.mark.parametrize(("start", "levels"), [("info", ["debug", "info"]), ("debug", ["info", "debug"])])
def test_the_switch_turns_debug_on_and_off(start: LogLevel, levels: list[LogLevel]) -> None:
    seen: list[LogLevel] = []
    loggers = [logging.getLogger(name) for name in ("", "medusa", "medusa_core", "uvicorn")]
    before = [logger.level for logger in loggers]
    switch = LevelSwitch(start, seen.append)
    switch.toggle()
    switch.toggle()
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)

    assert seen == levels


def test_a_process_without_standard_streams_gets_them_before_a_socket_takes_their_place_and_its_child_too() -> None:
    code = (
        "import os, subprocess, sys; from server.logs import fill_standard_streams\n"
        "os.close(0); os.close(2)\n"
        # as a library might, which then has the number 0 in this process alone
        "assert os.open(os.devnull, os.O_RDWR) == 0; fill_standard_streams()\n"
        'tell = \'import os; os.write(1, " ".join(os.readlink(f"/proc/self/fd/{n}") for n in (0, 2)).encode())\'\n'
        "exec(tell); os.write(1, b', '); subprocess.run([sys.executable, '-c', tell], close_fds=True)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert shown == "/dev/null /dev/null, /dev/null /dev/null"


def test_the_stream_can_stand_where_a_program_expects_a_file() -> None:
    assert isinstance(SteadyStream(2), io.TextIOBase)
    assert SteadyStream(2).encoding == "utf-8"
