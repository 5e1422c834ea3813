from typing import Any

import pytest

from medusa_core.errors import ConfigurationError
from medusa_core.training.records import Message, Record
from medusa_core.training.replay import Replay, Turns, digest

CALL: dict[str, Any] = {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}


def replay(turns: Turns, *said: str, text: str | None = None) -> Replay:
    """`u: Yes.` is the user saying Yes.; a call is the assistant's turn `c:`."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    messages = tuple(
        Message("assistant", "", CALL) if turn[0] == "c" else Message(roles[turn[0]], turn[3:]) for turn in said
    )
    return Replay(Record(7, messages, text, is_cut=False), turns)


def played(play: Replay) -> list[str]:
    """All messages when the model answers A, B, C and so on."""
    for letter in "ABCDE":
        if not play.is_finished:
            play.answer(letter, "stop")
    assert play.is_finished
    return [f"{message['role'][0]}: {message['content']}" for message in play.line()["messages"]]


@pytest.mark.parametrize(
    ("turns", "said", "expected"),
    [
        ("all", ["u: 1"], ["u: 1", "a: A"]),
        ("all", ["s: 0", "u: 1", "a: x", "u: 2", "a: y"], ["s: 0", "u: 1", "a: A", "u: 2", "a: B"]),
        ("all", ["u: 1", "u: 2"], ["u: 1", "a: A", "u: 2", "a: B"]),
        ("all", ["a: hello", "u: 1", "a: x", "a: y"], ["u: 1", "a: A"]),
        ("all", ["u: 1", "a: x", "s: 2", "u: 3"], ["u: 1", "a: A", "s: 2", "u: 3", "a: B"]),
        ("last", ["u: 1", "a: x", "u: 2", "a: y"], ["u: 1", "a: x", "u: 2", "a: A"]),
        ("last", ["u: 1", "u: 2"], ["u: 1", "u: 2", "a: A"]),
        # What a tool says belongs to the call in the file, so the model is not asked in between.
        ("all", ["u: 1", "c: ", "t: 2", "t: 3", "a: x"], ["u: 1", "a: ", "t: 2", "t: 3", "a: A"]),
        ("all", ["u: 1", "a: x", "u: 2", "c: "], ["u: 1", "a: A"]),
    ],
)
def test_the_models_answers_take_the_place_of_the_assistants(
    turns: Turns, said: list[str], expected: list[str]
) -> None:
    assert played(replay(turns, *said)) == expected


def test_each_answer_is_written_behind_what_was_said_before_it_and_no_more() -> None:
    play = replay("all", "u: 1", "a: x", "u: 2")

    assert [message["content"] for message in play.messages] == ["1"]
    play.answer("A", "stop")
    assert [message["content"] for message in play.messages] == ["1", "A", "2"]
    assert play.turn == 1


def test_all_that_will_be_asked_is_known_before_the_first_answer() -> None:
    play = replay("all", "u: 1", "a: x", "s: 2", "u: 3", "a: y")

    assert [message["role"] for message in play.last_asked()] == ["user", "assistant", "system", "user"]
    assert [message["content"] for message in play.messages] == ["1"]


def test_a_conversation_ends_with_an_answer_that_was_cut_off() -> None:
    play = replay("all", "u: 1", "u: 2")
    play.answer("A", "length")

    assert play.is_finished
    assert play.line()["finish_reason"] == "length"
    assert [message["content"] for message in play.line()["messages"]] == ["1", "A"]


def test_a_conversation_may_end_before_a_turn_that_does_not_fit() -> None:
    play = replay("all", "u: 1", "s: 2", "u: 3")
    play.answer("A", "stop")
    play.stop_here()

    assert play.is_finished
    assert [message["content"] for message in play.line()["messages"]] == ["1", "A"]


def test_a_text_is_continued_once() -> None:
    play = replay("all", text="def ")
    play.answer("f", "length")

    assert play.is_finished
    line = play.line()
    assert (line["text"], line["source"], line["finish_reason"]) == ("def f", 7, "length")


@pytest.mark.parametrize("turns", ["all", "last"])
def test_without_a_question_there_is_nothing_to_answer(turns: Turns) -> None:
    with pytest.raises(ConfigurationError, match="nothing to answer"):
        replay(turns, "a: hello")


def test_a_digest_tells_prompts_apart() -> None:
    records = [
        Record(1, (Message("user", "a"),), None, is_cut=False),
        Record(1, (Message("user", "b"),), None, is_cut=False),
        Record(1, (Message("system", "a"),), None, is_cut=False),
        Record(1, (), "a", is_cut=False),
        Record(1, (Message("user", "a"),), None, is_cut=False, tools=({"name": "f"},)),
    ]

    assert len({digest(record) for record in records}) == len(records)
    assert digest(records[0]) == digest(Record(9, (Message("user", "a"),), None, is_cut=True))
