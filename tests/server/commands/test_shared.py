import sys
from pathlib import Path

import pytest
from rich.console import Console

from medusa_core.errors import ConfigurationError, ModelNotFound
from server.commands.shared import given, need_file, one_line_errors, say, watched


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


def test_a_line_is_said_as_it_stands() -> None:
    console = Console(record=True, width=10)

    say(console, "[red]12 answers in /a/long/path")

    assert console.export_text() == "[red]12 answers in /a/long/path\n"


def test_elsewhere_than_on_a_terminal_each_stage_is_one_line() -> None:
    console = Console(record=True, width=80, force_terminal=False)

    with watched(console) as watch:
        for stage, share in (("loading", 0.1), ("loading", 0.9), ("timing", 0.0)):
            watch(stage, share)

    assert console.export_text() == "loading\ntiming\n"


def test_on_a_terminal_the_bar_waits_where_another_is_shown_first(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, width=80, stderr=True)

    with watched(console, at_once=False) as watch:
        print("step 1 of 10", end="\r", file=sys.stderr)  # what a bar does; one that is drawn already would swallow it
        first = capsys.readouterr().err
        watch("timing", 0.5)
    rest = capsys.readouterr().err

    assert first == "step 1 of 10\r"
    assert "timing" in rest
