import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_core.drafters import DraftState, PredictionBranch
from medusa_core.memory import NOTHING
from tests.cast import CPU

PROMPT = [50, 51, 52]


def propose(prediction: list[int], answer: list[int], depth: int = 4) -> list[int]:
    """The tokens that are proposed behind an answer so far."""
    sequence = PROMPT + answer
    history = torch.tensor(sequence + [99] * 12)
    drafter = PredictionBranch(prediction, len(PROMPT), depth, CPU)
    branch = drafter.propose(
        DraftState(torch.tensor(answer[-1]), torch.zeros(1), torch.tensor(len(sequence) - 1), None, history)
    )
    possible = branch.kinds != NOTHING
    tokens: list[int] = branch.tokens[possible].tolist()
    assert bool((possible.long().diff() <= 0).all()), "a branch ends once"
    return tokens


def test_an_answer_that_begins_as_predicted_goes_on_as_predicted() -> None:
    assert propose([1, 2, 3, 4, 5, 6], [1]) == [2, 3, 4, 5]
    assert propose([1, 2, 3, 4, 5, 6], [1, 2, 3]) == [4, 5, 6]


def test_at_the_end_of_the_prediction_nothing_is_left_to_propose() -> None:
    assert propose([1, 2, 3], [1, 2, 3]) == []


def test_what_was_not_predicted_proposes_nothing() -> None:
    assert propose([1, 2, 3], [9]) == []


def test_behind_a_changed_token_the_prediction_is_found_again() -> None:
    assert propose([1, 2, 3, 4, 5], [1, 9]) == []
    assert propose([1, 2, 3, 4, 5], [1, 9, 3]) == [4, 5]


def test_behind_added_and_left_out_tokens_the_prediction_is_found_again() -> None:
    assert propose([1, 2, 3, 4, 5, 6], [1, 7, 8, 9, 2]) == [3, 4, 5, 6]
    assert propose([1, 2, 3, 4, 5, 6, 7], [1, 5, 6]) == [7]


def test_of_equal_matches_the_one_nearest_to_its_place_is_taken() -> None:
    assert propose([1, 2, 8, 1, 2, 9], [1, 2]) == [8, 1, 2, 9]
    assert propose([1, 2, 8, 1, 2, 9], [7, 7, 7, 7, 2]) == [9]


def test_a_longer_match_goes_before_a_nearer_one() -> None:
    assert propose([1, 2, 3, 9, 9, 9, 9, 5, 2, 3, 7], [5, 2, 3]) == [7]


def test_the_prompt_is_no_part_of_the_match() -> None:
    """The prompt's end stands in the prediction, before the wrong one of two equal tokens."""
    assert propose([1, 2, *PROMPT, 1, 3], [1], depth=1) == [2]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_whatever_is_proposed_follows_the_last_token_somewhere(prediction: list[int], answer: list[int]) -> None:
    proposed = propose(prediction, answer)
    places = [place for place, token in enumerate(prediction[:-1]) if token == answer[-1]]

    if proposed:
        assert any(prediction[place + 1 : place + 1 + len(proposed)] == proposed for place in places)
    else:
        assert answer[-1] not in prediction[:-1] or answer[-1] == prediction[-1]
