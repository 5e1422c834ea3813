import re

import pytest

from server.call_events import (
    CallArguments,
    CallOpened,
    Content,
    Event,
    Reasoning,
    WholeMessage,
    call_delta,
    fold,
    new_call_id,
)

CALLS: list[Event] = [
    CallOpened(0, "a", "first"),
    CallArguments(0, '{"x": '),
    CallArguments(0, "1}"),
    CallOpened(1, "b", "second"),
    CallArguments(1, "{}"),
]


def test_the_pieces_of_an_answer_make_up_a_message() -> None:
    message = fold([Reasoning("Hm, "), Reasoning("yes."), Content("Let "), Content("me see."), *CALLS])

    assert message == WholeMessage(
        "Let me see.",
        "Hm, yes.",
        [
            {"id": "a", "type": "function", "function": {"name": "first", "arguments": '{"x": 1}'}},
            {"id": "b", "type": "function", "function": {"name": "second", "arguments": "{}"}},
        ],
    )


def test_content_is_null_only_where_there_are_calls_instead() -> None:
    assert fold(CALLS).content is None
    assert fold([]) == WholeMessage("", None, [])
    assert fold([Reasoning("Hm.")]).content == ""


def test_a_call_that_was_cut_off_keeps_what_came() -> None:
    assert fold(CALLS[:2]).tool_calls[0]["function"]["arguments"] == '{"x": '
    assert fold(CALLS[:1]).tool_calls[0]["function"]["arguments"] == ""


def test_id_type_and_name_are_streamed_once() -> None:
    deltas = [call_delta(event) for event in CALLS if isinstance(event, CallOpened | CallArguments)]

    assert deltas[:2] == [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "first", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x": '}},
    ]
    assert [delta["index"] for delta in deltas if "id" in delta] == [0, 1]


@pytest.mark.parametrize(("length", "form"), [(None, "call_[A-Za-z0-9]{24}"), (9, "[A-Za-z0-9]{9}")])
def test_ids_are_random_and_of_the_form_that_is_wanted(length: int | None, form: str) -> None:
    ids = {new_call_id(length) for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch(form, call_id) for call_id in ids)
