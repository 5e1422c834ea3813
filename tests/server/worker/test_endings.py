import re
import signal

import pytest

from medusa_core.errors import HeadsMismatch, OutOfMemory
from server.worker.endings import ending_by_exit, ending_by_failed_load, ending_by_silence


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (-signal.SIGKILL, "oom", "signal 9, probably by the kernel .* smaller --max-context"),
        (-signal.SIGSEGV, "crash", "signal 11 .Segmentation fault"),
        (3, "crash", "exit code 3"),
        (0, "crash", "exit code 0"),
    ],
)
def test_an_exit_code_is_told_by_what_it_means(code: int, reason: str, words: str) -> None:
    ending = ending_by_exit(code)

    assert ending.reason == reason
    assert re.search(words, ending.message)


def test_a_load_that_failed_for_want_of_memory_is_told_from_others() -> None:
    assert ending_by_failed_load(OutOfMemory("too large")).reason == "oom"
    assert ending_by_failed_load(HeadsMismatch("other heads")).reason == "crash"


def test_a_hang_is_told_by_how_long_it_was_waited_for() -> None:
    assert (ending_by_silence(2.5).reason, "for 2.5 s" in ending_by_silence(2.5).message) == ("hang", True)
