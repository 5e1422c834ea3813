import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medusa_core.errors import PromptTooLong
from server.commands.local_model import Choices
from server.commands.spoken import Spoken
from server.commands.talk import HELP, Talk, read_message
from tests.server.commands.speaking import Echoing


def reader(lines: list[str | type[BaseException]]) -> Callable[[str], str]:
    """What types these lines, or raises; behind them the input ends."""
    left: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def read(prompt: str) -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    return read


def talk(
    *lines: str | type[BaseException], speaker: Echoing | None = None, system: str | None = None
) -> tuple[str, str, Echoing]:
    """What is answered and what is noted when these lines are typed, and who was asked."""
    answered, noted = io.StringIO(), io.StringIO()
    out, notes = (Console(file=file, width=200, force_terminal=False) for file in (answered, noted))
    asked = speaker if speaker is not None else Echoing()
    Talk(asked, out, notes, reader(list(lines)), Choices(), system, "steps").run()
    return answered.getvalue(), noted.getvalue(), asked


def test_every_turn_carries_the_conversation_and_is_followed_by_its_statistics() -> None:
    answers, notes, speaker = talk("one", "two")

    assert answers == "ONE\nTWO\n"
    assert [message["content"] for message in speaker.asked[1][0]] == ["one", "ONE", "two"]
    assert notes.count("tokens per step") == notes.count("tokens/s") == notes.count("first after") == 2


def test_a_message_may_have_several_lines() -> None:
    assert read_message(reader(["a\\", "b\\", "c"])) == "a\nb\nc"
    assert read_message(reader(['"""', "a", "", "/b", '"""'])) == "a\n\n/b"


@pytest.mark.parametrize("lines", [['"""', "a", "b"], ["a\\", "b\\"], ["a\\", "b"], ["a\nb"]])
def test_the_end_of_the_input_ends_a_message_that_has_begun(lines: list[str | type[BaseException]]) -> None:
    assert read_message(reader(lines)) == "a\nb"


def test_a_message_may_begin_with_a_slash_when_it_is_written_twice() -> None:
    assert talk("//etc")[2].asked[0][0][0]["content"] == "/etc"


@pytest.mark.parametrize("text", ["// code\nand more", "/usr/bin/env is\na path"])
def test_several_lines_that_begin_with_a_slash_stand_as_they_are(text: str) -> None:
    assert talk(text)[2].asked[0][0][0]["content"] == text


def test_a_command_may_stand_behind_spaces_and_before_tabs_and_lines() -> None:
    _, notes, speaker = talk("  /seed\t7 ", "/system be\nbrief", "one", " /quit", "two")

    assert "seed: 7" in notes
    assert [message["content"] for message in speaker.asked[0][0]] == ["be\nbrief", "one"]
    assert len(speaker.asked) == 1


def test_the_system_text_stands_first_and_survives_a_reset() -> None:
    _, _, speaker = talk("/system be brief", "one", "/reset", "two", "/system", "three", system="be long")

    assert [message["content"] for message in speaker.asked[1][0]] == ["be brief", "two"]
    assert [message["content"] for message in speaker.asked[2][0]] == ["two", "TWO", "three"]


def test_temperature_seed_and_trees_are_chosen_from_the_next_answer_on() -> None:
    _, _, speaker = talk("/temperature 0.5", "/seed 7", "/tree off", "one", "/temperature", "/seed", "/tree on", "two")
    (_, first), (_, second) = speaker.asked

    assert (first.temperature, first.seed, first.mode) == (0.5, 7, "off")
    assert (second.temperature, second.mode) == (None, "auto")
    assert second.seed not in (None, 7)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("/temperature hot", "/temperature takes a number"),
        ("/temperature 3", "between 0 and 2"),
        ("/temperature nan", "between 0 and 2"),
        ("/seed x", "/seed takes a whole number"),
        (f"/seed {2**64}", "64 bits"),
        ("/tree up", "/tree takes on or off"),
        ("/stat", "did you mean /stats?"),
        ("/xyz", "/help tells"),
        ("/", "/ is no command"),
        ("/compare", "ask one first"),
        ("/stats", "nothing was answered"),
        ("/save", "the name of a file"),
        ("/save /nowhere/at/all/x", "cannot be written"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_and_the_talk_goes_on(words: str, named: str) -> None:
    answers, notes, _ = talk(words, "one")

    assert named in notes
    assert answers == "ONE\n"


def test_the_last_question_is_compared_with_speculation_the_other_way() -> None:
    _, notes, speaker = talk("abcdefg", "/compare")
    (messages, first), (again, second) = speaker.asked

    assert messages == again
    assert (first.mode, second.mode) == ("auto", "off")
    assert first.seed == second.seed is not None
    assert "the same text; 1.75 times as long without speculation (7.00 s, with it 4.00 s)" in notes


def test_a_comparison_tells_where_texts_part() -> None:
    _, notes, _ = talk("abcd", "/compare", speaker=Echoing(plain_text="ABXY"))

    assert "not the same text from character 3 on: 'CD', then 'XY'" in notes


def test_a_comparison_of_a_plain_answer_tells_what_trees_bring() -> None:
    _, notes, _ = talk("/tree off", "abcdefg", "/compare")

    assert "with speculation: " in notes
    assert "1.75 times as long without speculation" in notes


def test_the_statistics_are_of_all_answers() -> None:
    _, notes, _ = talk("abcd", "efgh", "/stats")

    assert "2 answers, 10 tokens" in notes
    assert "60 %" in notes


def test_the_conversation_is_saved_as_the_body_of_a_request_and_nothing_is_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    _, notes, _ = talk("one", f"/save {file}", f"/save {file}", system="be brief")
    saved = json.loads(file.read_text())

    assert saved["model"] == "echo"
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert "exists already" in notes
    assert list(tmp_path.iterdir()) == [file]


def test_a_refused_question_is_no_part_of_the_conversation() -> None:
    _, notes, speaker = talk("long", "long", speaker=Echoing(fails=PromptTooLong(9, 1, 8, "messages")))

    assert notes.count("error: ") == 2
    assert "/reset" not in notes
    assert len(speaker.asked[1][0]) == 1


def test_a_conversation_that_fills_the_context_is_told_how_to_begin_anew() -> None:
    class Forgetful(Echoing):
        def reply(
            self, messages: Sequence[Mapping[str, Any]], choices: Choices, should_stop: Callable[[], bool]
        ) -> Spoken:
            if len(messages) > 1:
                raise PromptTooLong(9, 1, 8, "messages")
            return super().reply(messages, choices, should_stop)

    answers, notes, _ = talk("one", "two", "/reset", "three", speaker=Forgetful())

    assert "/reset forgets" in notes
    assert answers == "ONE\nTHREE\n"


def test_an_interrupt_at_the_prompt_ends_nothing_and_quit_does() -> None:
    answers, notes, _ = talk(KeyboardInterrupt, "", "one", "/quit", "two")

    assert answers == "ONE\n"
    assert "Ctrl-D" in notes


def test_help_tells_every_command() -> None:
    _, notes, _ = talk("/help")

    assert all(command in notes for command in HELP)


def test_the_page_tells_every_command() -> None:
    page = (Path(__file__).parents[3] / "docs" / "terminal.md").read_text(encoding="utf-8")

    assert [name for name in HELP if f"`{name.split()[0]}" not in page] == []
