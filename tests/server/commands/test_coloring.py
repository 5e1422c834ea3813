import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from medusa_core.errors import PromptTooLong
from server.commands.coloring import SOURCE_STYLES, Coloring, legend, painted, speak
from server.commands.spoken import Spelt, Spoken
from server.schemas.usage import TokenSource
from tests.server.commands.speaking import Letters, deltas

STEP = [Spelt("on", "heads"), Spelt("ce", "base")]


def styles(number: int, coloring: Coloring) -> set[str]:
    return {str(span.style) for span in painted(STEP, number, coloring).spans}


def test_colours_change_with_the_step_or_with_who_proposed_the_token() -> None:
    assert styles(0, "steps") != styles(1, "steps") == styles(3, "steps")
    assert len(styles(0, "steps")) == 1
    assert styles(0, "sources") == styles(1, "sources") == {"blue", "default"}
    assert styles(0, "none") == {"default"}


def test_every_source_has_a_colour() -> None:
    assert set(SOURCE_STYLES) == set(TokenSource.__args__)


def test_a_model_cannot_command_the_terminal() -> None:
    text = painted([Spelt("\x1b[2J\x9b\r\a ok\n\tgo", "base")], 0, "none").plain

    assert text == "\ufffd[2J\ufffd\ufffd ok\n\tgo"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_gets_colours_and_a_file_gets_the_text_as_it_is(is_terminal: bool) -> None:
    file = io.StringIO()
    out = Console(file=file, force_terminal=is_terminal, color_system="standard", _environ={})
    speak(out, Spoken(deltas("a\x07[b]" + "c" * 200), Letters()), "steps")
    legend(out, "sources")

    if is_terminal:
        assert "\x1b[36m" in file.getvalue() and "\x07" not in file.getvalue() and "grammar" in file.getvalue()
    else:
        assert file.getvalue() == "a\x07[b]" + "c" * 200 + "\n"


def test_what_is_refused_before_its_first_token_leaves_no_empty_line_as_an_answer() -> None:
    out = Console(file=io.StringIO())

    with pytest.raises(PromptTooLong):
        speak(out, Spoken(refused(), Letters()), "none")
    assert out.file.getvalue() == ""  # type: ignore[attr-defined]


def refused() -> Iterator[Any]:
    raise PromptTooLong(9, 1, 8, "messages")
    yield


def test_a_terminal_without_colours_is_told_of_none() -> None:
    out = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})

    legend(out, "steps")
    assert out.file.getvalue() == ""  # type: ignore[attr-defined]
