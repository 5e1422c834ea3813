import dataclasses

import pytest

from medusa_core.generation import Delta, GenerationRequest
from tests.cast import GREEDY


def test_a_request_asks_for_nothing_special_unless_told() -> None:
    request = GenerationRequest((1, 2), GREEDY)

    assert (request.max_tokens, request.grammar, request.prediction, request.top_logprobs) == (None, None, (), None)
    assert request.speculation.mode == "auto"


def test_what_the_engine_has_said_cannot_be_edited() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Delta((1,), None, None, None, None).tokens = ()  # type: ignore[misc]
