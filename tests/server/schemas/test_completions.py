import pytest
from pydantic import ValidationError

from medusa_core.errors import InvalidParameter
from server.schemas.completions import CompletionRequest


def request(**fields: object) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": "a", **fields})


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [
        ("a", ["a"]),
        ([1, 2], [[1, 2]]),
        (["a"], ["a"]),
        (["a", "b"], ["a", "b"]),
        ([[1, 2]], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ("", [""]),
    ],
)
def test_prompts_are_texts_or_lists_of_ids(prompt: object, taken: object) -> None:
    assert request(prompt=prompt).prompt == taken


@pytest.mark.parametrize("prompt", [None, [], [[]], 1, True, {}, [1.0], [True], [None], [[[1]]], [1, "a"], ["a", [1]]])
def test_anything_else_is_refused(prompt: object) -> None:
    with pytest.raises(ValidationError):
        request(prompt=prompt)


def test_an_empty_suffix_is_none_and_a_full_one_needs_text_without_echo() -> None:
    assert request(suffix="b").suffix == "b"
    assert request(suffix="", echo=True).suffix is None
    assert request(suffix=None, prompt=[1]).suffix is None
    for fields in ({"echo": True}, {"prompt": [1, 2]}, {"prompt": [[1], [2]]}):
        with pytest.raises(InvalidParameter) as caught:
            request(suffix="b", **fields)
        assert caught.value.param == "suffix"


def test_no_word_for_no_log_probabilities_is_refused() -> None:
    assert request(logprobs=False).top_logprobs_wanted is None
    assert request(logprobs=None).top_logprobs_wanted is None
    assert request(logprobs=0).top_logprobs_wanted == 0


def test_the_best_of_fewer_than_are_sent_makes_no_sense() -> None:
    assert request(n=2, best_of=3).tries == 3
    assert request(n=2).tries == 2
    with pytest.raises(InvalidParameter):
        request(n=2, best_of=1)
    with pytest.raises(InvalidParameter):
        request(n=1, best_of=2, stream=True)
