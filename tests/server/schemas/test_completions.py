import pytest
from pydantic import ValidationError

from medusa_core.errors import UnsupportedParameter
from server.schemas.completions import CompletionRequest


@pytest.mark.parametrize(
    ("prompt", "taken"), [("a", "a"), ([1, 2], [1, 2]), (["a"], "a"), ([[1, 2]], [1, 2]), ("", ""), ([""], "")]
)
def test_a_prompt_is_text_or_ids(prompt: object, taken: object) -> None:
    assert CompletionRequest.model_validate({"model": "m", "prompt": prompt}).prompt == taken


@pytest.mark.parametrize("prompt", [None, [], [[]], 1, True, {}, [1.0], [True], [None], [[[1]]], [1, "a"]])
def test_anything_else_is_refused(prompt: object) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], ["a", [1]]])
def test_several_prompts_are_not_built_yet(prompt: object) -> None:
    with pytest.raises(UnsupportedParameter):
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})
