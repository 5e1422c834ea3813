import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_core.drafters import PromptLookup
from medusa_core.memory import NOTHING, kind_of
from medusa_core.tree import GRADES
from tests.cast import CPU

GARBAGE = [7, 7, 7, 7]


def look_up(sequence: list[int], depth: int = 4) -> tuple[list[int], list[int]]:
    """Proposed tokens and how many tokens stand behind each; 0 where nothing is proposed."""
    history = torch.tensor(sequence + GARBAGE)
    branch = PromptLookup(depth, CPU).look_up(history, torch.tensor(len(sequence) - 1))
    return branch.tokens.tolist(), [max(0, kind - kind_of("lookup", 0) + 1) for kind in branch.kinds.tolist()]


def slowly(sequence: list[int], depth: int) -> tuple[int, list[int]]:
    """Length of the longest match, at most 8 and the latest of equals, and what follows it, going round."""
    root, best = len(sequence) - 1, (0, 0)
    for end in range(root):
        length = 0
        while length < GRADES and length <= end and sequence[end - length] == sequence[root - length]:
            length += 1
        if length >= best[0] and length > 0:
            best = (length, end)
    length, end = best
    return length, [sequence[end + 1 + ahead % (root - end)] for ahead in range(depth)]


def test_what_followed_last_time_is_proposed_with_growing_confidence() -> None:
    tokens, matched = look_up([1, 2, 3, 4, 5, 6, 9, 1, 2])

    assert tokens == [3, 4, 5, 6]
    assert matched == [2, 3, 4, 5]


def test_the_longer_match_goes_before_the_later_one() -> None:
    assert look_up([1, 2, 3, 8, 2, 4, 9, 1, 2])[0][0] == 3


def test_repetition_goes_round() -> None:
    assert look_up([5, 6, 5, 6, 5, 6], depth=5)[0] == [5, 6, 5, 6, 5]


def test_nothing_is_proposed_where_nothing_matches() -> None:
    branch = PromptLookup(3, CPU).look_up(torch.tensor([1, 2, 3, 4, *GARBAGE]), torch.tensor(3))

    assert branch.kinds.tolist() == [NOTHING] * 3


@pytest.mark.parametrize("sequence", [[7, 1], [1, 7], [7, 7]])
def test_what_lies_behind_the_root_and_before_the_start_is_no_match(sequence: list[int]) -> None:
    branch = PromptLookup(2, CPU).look_up(torch.tensor(sequence + GARBAGE), torch.tensor(1))

    assert bool((branch.kinds != NOTHING).all()) == (sequence == [7, 7])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=24), st.integers(1, 6))
def test_one_pass_over_the_sequence_finds_what_a_search_finds(sequence: list[int], depth: int) -> None:
    length, expected = slowly(sequence, depth)
    tokens, matched = look_up(sequence, depth)

    if length == 0:
        assert matched == [0] * depth
    else:
        assert tokens == expected
        assert matched == [min(length + ahead, GRADES) for ahead in range(depth)]
