import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.predicted import PredictionCount

TOKENS = st.lists(st.integers(0, 3), max_size=20)


def counted(prediction: list[int], answer: list[int]) -> tuple[int, int]:
    count = PredictionCount(prediction)
    count.take(answer)
    return count.accepted, count.rejected


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ([1, 2, 3, 4, 5, 6], 6),  # as predicted
        ([1, 2, 3], 3),  # cut short
        ([1, 2, 3, 4, 5, 6, 7, 8], 6),  # and more
        ([1, 9, 3, 4, 5, 6], 5),  # one changed
        ([1, 2, 9, 9, 3, 4, 5, 6], 6),  # two put in
        ([1, 2, 5, 6], 4),  # two left out
        ([9, 9], 0),
        ([], 0),
        ([6, 5, 4, 3, 2, 1], 1),  # order counts
    ],
)
def test_what_of_the_prediction_appears_in_the_answer_is_counted(answer: list[int], accepted: int) -> None:
    assert counted([1, 2, 3, 4, 5, 6], answer) == (accepted, 6 - accepted)


@given(TOKENS, TOKENS)
def test_no_token_is_counted_twice(prediction: list[int], answer: list[int]) -> None:
    accepted, rejected = counted(prediction, answer)

    assert 0 <= accepted <= min(len(prediction), len(answer))
    assert accepted + rejected == len(prediction)


@given(TOKENS)
def test_a_right_prediction_is_accepted_whole(prediction: list[int]) -> None:
    assert counted(prediction, prediction) == (len(prediction), 0)


@given(TOKENS, TOKENS)
def test_it_does_not_matter_in_which_pieces_the_answer_comes(prediction: list[int], answer: list[int]) -> None:
    count = PredictionCount(prediction)
    for token in answer:
        count.take([token])

    assert (count.accepted, count.rejected) == counted(prediction, answer)
