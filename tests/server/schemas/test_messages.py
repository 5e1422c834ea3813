from typing import Any

import pytest
from pydantic import ValidationError

from medusa_core.errors import InvalidParameter, UnsupportedParameter
from server.schemas.messages import Message, check_ending


def for_template(**fields: Any) -> dict[str, Any]:
    return Message.model_validate(fields).for_template()


def test_a_template_gets_text_and_no_absent_keys() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert for_template(role="developer", content=parts, type="text") == {"role": "system", "content": "ab"}
    assert for_template(role="user", content="a", name="Ann", cache_control={}) == {
        "role": "user",
        "content": "a",
        "name": "Ann",
    }


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
def test_content_may_be_missing_where_tools_were_called(content: dict[str, Any]) -> None:
    found = for_template(role="assistant", tool_calls=[{**CALL, "index": 0}], **content)

    assert found == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_an_older_call_and_its_result_are_a_tool_call_and_a_tools_message() -> None:
    call = for_template(role="assistant", function_call=CALL["function"])
    result = for_template(role="function", name="add", content="2")

    assert call == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": CALL["function"]}],
    }
    assert result == {"role": "tool", "name": "add", "content": "2"}


def test_what_an_assistant_refused_or_thought_is_not_lost() -> None:
    assert for_template(role="assistant", refusal="No.")["content"] == "No."
    assert for_template(role="assistant", content=[{"type": "refusal", "refusal": "No."}])["content"] == "No."
    assert for_template(role="assistant", content="2", reasoning_content="1+1")["reasoning_content"] == "1+1"


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool"])
def test_nobody_else_may_say_nothing(role: str) -> None:
    with pytest.raises(ValidationError, match="content of a"):
        Message.model_validate({"role": role, "content": None})


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_no_text_are_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedParameter, match=kind):
        Message.model_validate({"role": "user", "content": [{"type": kind, kind: {}}]})


@pytest.mark.parametrize("content", [1, True, {}, [1], [{}], [{"type": "text"}], [{"type": "text", "text": 1}]])
def test_content_of_another_kind_is_refused(content: object) -> None:
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "user", "content": content})


@pytest.mark.parametrize(
    "call",
    [
        5,
        {},
        {"function": {}},
        {"function": {"name": "", "arguments": ""}},
        {"function": {"name": "f"}},
        {"function": {"name": "f", "arguments": 5}},
        {"id": 5, "function": {"name": "f", "arguments": ""}},
    ],
)
def test_a_call_without_a_name_or_arguments_is_refused(call: object) -> None:
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "assistant", "tool_calls": [call]})


def test_a_call_of_something_else_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedParameter, match="custom"):
        Message.model_validate({"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f"}}]})


def test_arguments_may_be_the_object_that_other_clients_send() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}

    assert for_template(role="assistant", tool_calls=[call])["tool_calls"][0]["function"]["arguments"] == {"a": 1}


@pytest.mark.parametrize(
    ("last", "starts_turn", "param"),
    [
        ({"role": "user", "content": "a"}, None, "continue_final_message"),
        ({"role": "assistant", "tool_calls": [CALL]}, None, "continue_final_message"),
        ({"role": "assistant", "content": "a"}, True, "add_generation_prompt"),
    ],
)
def test_only_a_text_of_the_assistant_can_be_gone_on_with(
    last: dict[str, Any], starts_turn: bool | None, param: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        check_ending([Message.model_validate(last)], starts_turn, is_continued=True)

    assert caught.value.param == param
    check_ending([Message.model_validate(last)], starts_turn, is_continued=False)
