import io
import re
import subprocess
import sys
from contextvars import copy_context
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from medusa_core.errors import ConfigurationError, ModelNotFound
from server.commands.shared import busy, given, need_file, note, one_line_errors, say, show_tracebacks, watched


def test_what_was_not_given_keeps_its_default_and_zero_is_given() -> None:
    assert given({"temperature": 0.0, "seed": None}) == {"temperature": 0.0}


def test_a_file_that_is_not_there_is_refused_with_the_option_that_named_it() -> None:
    with pytest.raises(ConfigurationError, match="--data: the file 'nowhere' does not exist"):
        need_file(Path("nowhere"), "--data")


@pytest.mark.parametrize(("error", "status"), [(ConfigurationError("wrong"), 2), (ModelNotFound("none"), 1)])
def test_an_error_on_purpose_is_one_line_and_a_status(error: Exception, status: int) -> None:
    console = Console(record=True, width=20)

    with pytest.raises(SystemExit) as ended, one_line_errors(console):
        raise error
    assert ended.value.code == status
    assert console.export_text() == f"error: {error}\n"


def test_who_asks_for_it_is_shown_where_an_error_comes_from() -> None:
    console = Console(record=True, width=200)

    def fail() -> None:
        show_tracebacks(True)
        with one_line_errors(console):
            raise ConfigurationError("wrong")

    with pytest.raises(SystemExit):
        copy_context().run(fail)
    shown = console.export_text()
    assert "Traceback" in shown and "test_shared.py" in shown and shown.endswith("error: wrong\n")


@pytest.mark.parametrize(("debug", "lines"), [(False, 1), (True, 4)])
def test_an_error_that_nobody_foresaw_is_one_line_unless_somebody_asks(debug: bool, lines: int) -> None:
    code = (
        "import sys; from server.commands.shared import busy, show_tracebacks, tell_unexpected\n"
        f"sys.excepthook = tell_unexpected; show_tracebacks({debug})\n"
        "def look(): return {}['x']\n"
        "look()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) >= lines and ("Traceback" in ended.stderr) == debug
    if not debug:
        assert (
            ended.stderr == "error: KeyError: 'x', in <string> line 3; `medusa --debug ...` shows where it came from\n"
        )


def test_a_line_is_said_as_it_stands() -> None:
    console = Console(record=True, width=10)

    say(console, "[red]12 answers in /a/long/path")

    assert console.export_text() == "[red]12 answers in /a/long/path\n"


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "one two \nthree\n"), (False, "one two three\n")])
def test_a_note_is_broken_between_words_where_somebody_reads_it(is_terminal: bool, shown: str) -> None:
    console = Console(record=True, width=8, force_terminal=is_terminal, file=io.StringIO(), _environ={"TERM": "xterm"})

    note(console, "one two three")

    assert console.export_text() == shown


def test_neither_an_error_nor_a_line_can_command_the_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, _environ={"TERM": "dumb"})

    say(console, "a\x1b[2J")
    note(console, "b\x9b2J")
    with pytest.raises(SystemExit), one_line_errors(console):
        raise ModelNotFound("c\x1b]0;d\a\r\n")

    assert file.getvalue() == "a\ufffd[2J\nb\ufffd2J\nerror: c\ufffd]0;d\ufffd\n\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_is_told_that_something_goes_on(is_terminal: bool) -> None:
    console = Console(force_terminal=is_terminal, file=io.StringIO(), _environ={"TERM": "xterm"})

    with busy(console, "converting"):
        pass
    assert ("converting" in console.file.getvalue()) == is_terminal  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_where_no_bar_can_move_each_stage_is_one_line(is_terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, _environ={"TERM": "dumb"})

    with watched(console) as watch:
        for stage, share in (("loading", 0.1), ("loading", 0.9), ("timing", 0.0)):
            watch(stage, share)

    assert console.file.getvalue() == "loading\ntiming\n"  # type: ignore[attr-defined]


def test_a_stage_that_is_done_does_not_stop_the_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})

    with watched(console) as watch:
        for stage, share in (("loading", 1.0), ("timing", 0.5)):
            watch(stage, share)

    shown = Text.from_ansi(console.file.getvalue().replace("\x1b[2K", "\n")).plain  # type: ignore[attr-defined]
    assert re.search(r"[\u2801-\u28ff] timing", shown)


def test_on_a_terminal_the_bar_waits_where_another_is_shown_first(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, width=80, stderr=True, _environ={"TERM": "xterm"})

    with watched(console, at_once=False) as watch:
        print("step 1 of 10", end="\r", file=sys.stderr)  # what a bar does; one that is drawn already would swallow it
        first = capsys.readouterr().err
        watch("timing", 0.5)
    rest = capsys.readouterr().err

    assert first == "step 1 of 10\r"
    assert "timing" in rest
