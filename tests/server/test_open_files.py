import asyncio
import errno
import logging
import resource
import subprocess
import sys

import pytest

from server.open_files import KEPT_FREE, TELL_EVERY_S, ScarceFiles, connections_within


@pytest.mark.parametrize(
    ("wanted", "files", "fit"), [(512, 65536, 512), (512, 64, 64 - KEPT_FREE), (10, 64, 10), (512, 8, 1)]
)
def test_some_files_are_left_for_everything_else(wanted: int, files: int, fit: int) -> None:
    assert connections_within(wanted, files) == fit


def test_a_process_takes_the_files_that_it_may_allow_itself() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    code = "import resource, server.open_files as files; found = files.raise_limit();"
    code += "print(found, resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most // 2, most))}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **limits)

    assert ended.stdout.split() == [str(most), str(most)]


def test_files_that_run_out_are_told_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    clock = iter((0.0, 1.0, TELL_EVERY_S, TELL_EVERY_S + 1.0))
    scarce, loop = ScarceFiles(lambda: next(clock)), asyncio.new_event_loop()
    told = []
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            scarce(loop, {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")})
            told.append(len(caplog.records))
        assert told == [1, 1, 2, 2]

        scarce(loop, {"message": "a task failed", "exception": ValueError("something else")})
    loop.close()

    assert "something else" in str(caplog.records[-1].exc_info)
