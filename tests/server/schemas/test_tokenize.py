from typing import Any

import pytest
from pydantic import ValidationError

from medusa_core.errors import InvalidParameter
from server.schemas.tokenize import MAX_TOKENS, DetokenizeRequest, TokenizeRequest

USER = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("fields", [{}, {"prompt": None, "messages": None}, {"prompt": "a", "messages": USER}])
def test_one_text_is_tokenized_and_not_none_or_two(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="either"):
        TokenizeRequest.model_validate(fields)


def test_an_empty_text_is_a_text() -> None:
    assert TokenizeRequest.model_validate({"prompt": ""}).prompt == ""


def test_a_conversation_ends_as_in_a_chat() -> None:
    assert TokenizeRequest.model_validate({"messages": USER}).starts_turn
    assert not TokenizeRequest.model_validate({"messages": USER, "add_generation_prompt": False}).starts_turn
    with pytest.raises(InvalidParameter):
        TokenizeRequest.model_validate({"messages": USER, "continue_final_message": True})


@pytest.mark.parametrize("tokens", [None, 5, "5", [-1], [2**32], [True], [1.0], ["5"], [[5]], [5] * (MAX_TOKENS + 1)])
def test_ids_are_a_list_of_bounded_numbers(tokens: object) -> None:
    with pytest.raises(ValidationError):
        DetokenizeRequest.model_validate({"tokens": tokens})


def test_of_a_million_mistakes_the_first_is_enough() -> None:
    with pytest.raises(ValidationError) as caught:
        DetokenizeRequest.model_validate({"tokens": ["x"] * MAX_TOKENS})

    assert caught.value.error_count() == 1
