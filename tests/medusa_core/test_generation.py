import dataclasses

import pytest

from medusa_core.generation import Delta, GenerationRequest
from tests.cast import GREEDY, MockBackbone, make_engine


def test_a_request_asks_for_nothing_special_unless_told() -> None:
    request = GenerationRequest((1, 2), GREEDY)

    assert (request.max_tokens, request.grammar, request.prediction, request.top_logprobs) == (None, None, (), None)
    assert request.speculation.mode == "auto"


def test_what_the_engine_has_said_cannot_be_edited() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Delta((1,), None, None, None, None).tokens = ()  # type: ignore[misc]


def test_the_largest_tree_is_the_fixed_one_or_one_of_those_that_are_chosen_from() -> None:
    info = make_engine(MockBackbone(), tree_nodes=8).info

    assert info.most_nodes == 8
    assert dataclasses.replace(info, tree_sizes=(1, 4, 32)).most_nodes == 32
