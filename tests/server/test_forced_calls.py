"""Calls that a grammar forces a model to write; tests/server/test_tool_calls.py has those that it is free to make."""

import pytest

from medusa_core.tool_formats import ToolFormat
from server.call_events import CallArguments, CallOpened, fold
from server.tool_calls import ForcedCallStream
from tests.server.call_texts import calls_in, events_of, every_format, message_of, numbered, pieces


def forced(tool_format: ToolFormat) -> ForcedCallStream:
    return ForcedCallStream(tool_format, numbered())


# As a grammar lets a model write them: escapes and numbers as it likes, brackets and quotes inside strings.
BY_THE_LETTER = [
    ("first", '{"a": "\\u00f6} \\"{\\\\", "b": [1.50, {"c": []}], "d": "</tool_call>"}'),
    ("se-cond_2", "{}"),
    ("third", '{"\u65e5": "\U0001f642", "name": "x", "arguments": {}}'),
]


def written(tool_format: ToolFormat) -> str:
    before, between, after = tool_format.before_name, tool_format.before_arguments, tool_format.after_arguments
    calls = [before + name + between + arguments + after for name, arguments in BY_THE_LETTER]
    return tool_format.opener + tool_format.separator.join(calls) + tool_format.closer


@every_format
@pytest.mark.parametrize("length", [1, 2, 3, 7, 20, 1000])
def test_forced_calls_come_by_the_letter_however_they_are_cut(tool_format: ToolFormat, length: int) -> None:
    events = events_of(forced(tool_format), pieces(written(tool_format), length))

    assert fold(events).content is None
    assert calls_in(fold(events)) == BY_THE_LETTER
    assert [(e.index, e.id) for e in events if isinstance(e, CallOpened)] == [(0, "id0"), (1, "id1"), (2, "id2")]
    assert all(event.text for event in events if isinstance(event, CallArguments))


@every_format
def test_forced_calls_are_known_without_the_special_tokens_that_a_text_leaves_out(tool_format: ToolFormat) -> None:
    text = written(tool_format).replace('"</tool_call>"', '"x"')
    for marker in tool_format.markers:
        text = text.replace(marker, "")

    names = [name for name, _ in calls_in(message_of(forced(tool_format), *text))]

    assert names == [name for name, _ in BY_THE_LETTER]


@every_format
def test_forced_arguments_are_not_held_back(tool_format: ToolFormat) -> None:
    stream = forced(tool_format)
    head = tool_format.opener + tool_format.before_name + "f" + tool_format.before_arguments

    assert stream.feed(head) == []
    assert stream.feed('{"') == [CallOpened(0, "id0", "f"), CallArguments(0, '{"')]
    for character in 'a": 1}':
        assert stream.feed(character) == [CallArguments(0, character)]
    assert stream.feed(tool_format.after_arguments + tool_format.closer) == []
    assert stream.finish() == []


@every_format
def test_a_forced_call_that_is_cut_off_is_a_beginning_of_what_it_would_have_been(tool_format: ToolFormat) -> None:
    text = written(tool_format)

    for length in range(len(text)):
        found = calls_in(message_of(forced(tool_format), text[:length]))

        whole = BY_THE_LETTER[: len(found)]
        assert [name for name, _ in found] == [name for name, _ in whole]
        assert all(all_of.startswith(part) for (_, part), (_, all_of) in zip(found, whole, strict=True))
        assert found[:-1] == whole[:-1]
