import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.server.commands.refusals import refusal

ROOT = Path(__file__).parents[3]
CHAT = [sys.executable, "-c", "from server.cli import main; main()", "chat", "--threads", "1"]
# Makes the standard input the terminal of its session, then becomes the program named behind it. Ctrl-C means what it
# does in a terminal, also where the tests run in the background, which ignores it.
TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """The other side of a terminal in which a program runs."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._descriptor, self._seen = descriptor, ""

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def press(self, key: str, pattern: str) -> None:
        """Press a key until the pattern is shown: Python misses a signal that comes just before it waits for input."""
        self.type(key)
        while not self._shows(pattern, within_s=3.0):
            assert self.process.poll() is None, f"the program has ended: {self._seen[-500:]!r}"
            self.type(key)

    def wait_for(self, pattern: str, within_s: float = 60.0) -> str:
        """What was shown up to the pattern; later calls see what follows it."""
        assert self._shows(pattern, within_s), f"{pattern!r} does not come: {self._seen[-500:]!r}"
        found = re.search(pattern, self._seen)
        assert found is not None
        shown, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return shown

    def _shows(self, pattern: str, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while re.search(pattern, self._seen) is None:
            if time.monotonic() > deadline:
                return False
            if select.select([self._descriptor], [], [], 0.1)[0]:
                self._seen += os.read(self._descriptor, 65536).decode(errors="replace")
        return True

    def end(self, within_s: float = 60.0) -> int:
        """The status with which the program ends, which it cannot before all it showed was read."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "the program does not end"
            if select.select([self._descriptor], [], [], 0.05)[0]:
                with suppress(OSError):  # what Linux says of a terminal that nobody holds open any more
                    os.read(self._descriptor, 65536)
        return self.process.returncode


@contextmanager
def chatting(*words: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    environment.pop("NO_COLOR", None)
    # a session of its own, whose terminal this is: Ctrl-C reaches the program as it does in life
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL, *CHAT, *words],
        cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_talk_in_a_terminal_is_coloured_stopped_by_ctrl_c_and_ended_by_ctrl_d() -> None:
    with chatting("--color", "steps") as terminal:
        terminal.wait_for("(?s)demo on cpu .*> ")
        # where nothing is answered, nothing ends
        terminal.press("\x03", "Ctrl-D or /quit")
        terminal.wait_for("(?s)Ctrl-D or /quit.*> ")

        terminal.type("What does textwrap.dedent do?\n")
        answer = terminal.wait_for(r"tokens per step[^\n]*\n")
        assert "\x1b[36m" in answer and "\x1b[35m" in answer

        # a text that goes on and on
        terminal.type("/temperature 2\n/seed 2\nWhat does json.dumps do?\n")
        terminal.wait_for("(?s)seed: 2.*\x1b\\[36m")
        terminal.type("\x03")
        terminal.wait_for(r"stopped\]")

        terminal.type("/stats\n")
        terminal.wait_for("(?s)2 answers.*> ")
        # the arrow brings back what was typed last
        terminal.type("\x1b[A\n")
        terminal.wait_for("(?s)2 answers.*> ")
        # as terminals mark what is pasted: one message, though it has three lines
        terminal.type("\x1b[200~/usr/bin\n/stats\nhere\x1b[201~\n/stats\n")
        terminal.wait_for("(?s)3 answers.*> ")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_without_a_terminal_the_answers_alone_are_plain_text_on_the_output() -> None:
    # the first line is no UTF-8
    asked = "caf\udce9\nWhat does textwrap.dedent do?\n/compare\n"
    ended = subprocess.run(
        [*CHAT, "--max-tokens", "8"], cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, input=asked,
        capture_output=True, text=True, errors="surrogateescape", timeout=60, check=True,
    )  # fmt: skip

    assert ended.stderr.startswith("error: the text holds a lone surrogate")
    assert ended.stdout.startswith("```python\ntextwrap.dedent") and ended.stdout.count("```") == 1
    assert "the same text" in ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr


def test_a_wrong_option_is_one_clear_line() -> None:
    assert "/nowhere" in refusal("chat", "--model", "/nowhere/at/all")
    assert "--mode" in refusal("chat", "--mode", "psychic")
