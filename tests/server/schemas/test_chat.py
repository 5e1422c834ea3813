from typing import Any

import pytest

from medusa_core.errors import InvalidParameter, UnsupportedParameter
from server.schemas.chat import ChatRequest
from server.schemas.messages import TEMPLATE_ARGUMENTS

ANSWERED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": ANSWERED, **fields})


@pytest.mark.parametrize(
    ("fields", "starts_turn"),
    [
        ({}, True),
        ({"add_generation_prompt": None, "continue_final_message": None}, True),
        ({"add_generation_prompt": True, "continue_final_message": False}, True),
        ({"add_generation_prompt": False}, False),
        ({"continue_final_message": True}, False),
        ({"continue_final_message": True, "add_generation_prompt": False}, False),
    ],
)
def test_a_prompt_ends_with_a_new_turn_unless_told(fields: dict[str, Any], starts_turn: bool) -> None:
    assert request(**fields).starts_turn == starts_turn


def test_a_prompt_cannot_end_in_two_ways() -> None:
    with pytest.raises(InvalidParameter):
        request(continue_final_message=True, add_generation_prompt=True)


def test_a_template_is_told_scalars_under_known_names_only() -> None:
    asked = dict.fromkeys(TEMPLATE_ARGUMENTS, "x") | {"thinking": True, "thinking_budget": 5, "date_string": None}

    known = request(chat_template_kwargs=asked).chat_template_kwargs
    assert known == {"enable_thinking": "x", "preserve_thinking": "x", "reasoning_effort": "x"} | {
        "thinking": True,
        "thinking_budget": 5,
    }
    assert known["thinking"] is True
    assert request(chat_template_kwargs=None).chat_template_kwargs == {}
    for name in ("tokenize", "chat_template", "messages", "\n"):
        with pytest.raises(UnsupportedParameter) as caught:
            request(chat_template_kwargs={name: True})
        assert caught.value.param == f"chat_template_kwargs.{name}"


@pytest.mark.parametrize("value", [[1], {"a": 1}, float("nan"), float("inf")])
def test_a_template_is_told_nothing_that_is_no_scalar(value: object) -> None:
    with pytest.raises(InvalidParameter) as caught:
        request(chat_template_kwargs={"thinking": value})

    assert caught.value.param == "chat_template_kwargs.thinking"
