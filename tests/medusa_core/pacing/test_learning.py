import random
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import pytest

from medusa_core.pacing import FixedPace, Pacing, StepCosts
from medusa_core.pacing.learning import LIMIT, LIMIT_TOKENS
from tests.medusa_core.pacing.cast import CARD, COUNTED, PROCESSOR, STEEP, curve, decode, pacing, step_costs

CURVES = pytest.mark.parametrize("curve_of", [PROCESSOR, CARD, STEEP], ids=["processor", "card", "steep"])


def nothing() -> Iterator[Sequence[int]]:
    while True:
        yield []


def spiteful() -> Iterator[Sequence[int]]:
    """Accepts enough to have trees in use, then nothing for long."""
    while True:
        yield from [[1, 2, 3]] * 3
        yield from [[]] * 40


def text(share: float, seed: int = 0) -> Iterator[Sequence[int]]:
    """One guess after the other is right with this chance, and is among the first nodes mostly."""
    chance = random.Random(seed)
    while True:
        path: list[int] = []
        while chance.random() < share and len(path) < 8:
            path.append((path[-1] if path else 0) + 1 + int(chance.expovariate(1.0)))
        yield path


@CURVES
@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("is_seeded", [False, True])
def test_no_answer_is_slower_than_plain_decoding_by_more_than_the_limit(
    curve_of: dict[int, float], late: int, is_seeded: bool
) -> None:
    known = pacing(curve_of)
    for tokens in (LIMIT_TOKENS, 150, 400, 2000):
        for accepted in (nothing(), spiteful(), text(0.1), text(0.3), text(0.5)):
            found = decode(known.begin(None, False, is_seeded), step_costs(curve_of), accepted, tokens, late)

            assert found.slowdown <= 1 + LIMIT


@CURVES
def test_a_short_answer_loses_the_time_of_a_few_tokens_at_most(curve_of: dict[int, float]) -> None:
    costs = step_costs(curve_of)
    for tokens in (1, 5, 20):
        found = decode(pacing(curve_of).begin(None, False, True), costs, nothing(), tokens)

        assert found.seconds - found.plain <= LIMIT * LIMIT_TOKENS * costs.seconds(1, 100, False)


@CURVES
def test_where_trees_pay_it_is_hardly_slower_than_the_best_fixed_size(curve_of: dict[int, float]) -> None:
    costs = step_costs(curve_of)
    for share in (0.7, 0.9):
        found = decode(pacing(curve_of).begin(None, False, True), costs, text(share), 2000)
        fixed = [decode(FixedPace(size), costs, text(share), 2000).slowdown for size in costs.sizes]

        assert found.slowdown <= 1.05 * min(fixed)


@CURVES
def test_where_nothing_pays_a_tree_is_tried_about_once_in_fifty_steps(curve_of: dict[int, float]) -> None:
    sizes = decode(pacing(curve_of).begin(None, False, True), step_costs(curve_of), nothing(), 3000).sizes
    tried = sum(size > 1 for size in sizes[500:])

    assert 25 <= tried <= 55


def test_a_text_that_turns_guessable_is_noticed_within_a_few_dozen_steps() -> None:
    noticed = []
    for seed in range(20):
        accepted = chain(islice(nothing(), 300), text(0.75, seed))
        sizes = decode(pacing(PROCESSOR).begin(None, False, True), step_costs(PROCESSOR), accepted, 1200).sizes[300:]
        noticed.append(next(step for step in range(len(sizes)) if min(sizes[step : step + 20]) > 1))

    assert sorted(noticed)[10] <= 40 and sorted(noticed)[15] <= 80


def test_a_text_that_stops_being_guessable_is_decoded_plainly_soon() -> None:
    accepted = chain(islice(text(0.75), 200), nothing())
    sizes = decode(pacing(PROCESSOR).begin(None, False, True), step_costs(PROCESSOR), accepted, 1200).sizes[200:]

    assert next(step for step in range(len(sizes)) if max(sizes[step : step + 8]) == 1) <= 60
    assert sum(size > 1 for size in sizes) <= 80


def test_larger_trees_are_found_where_much_more_is_accepted_than_was_calibrated() -> None:
    found = decode(pacing(PROCESSOR).begin(None, False, True), step_costs(PROCESSOR), text(0.95), 600)

    assert found.sizes[-1] == 16


def test_without_trees_that_fit_every_step_is_plain() -> None:
    assert set(decode(pacing(PROCESSOR).begin(1, False, False), step_costs(PROCESSOR), text(0.9), 300).sizes) == {1}


def test_a_smaller_tree_is_taken_where_the_fastest_could_lose_too_much() -> None:
    known = Pacing(step_costs({1: 1.0, 4: 1.8, 16: 3.2}), {1: 1.0, 4: 2.0, 16: 5.0})
    sizes = decode(known.begin(None, False, True), step_costs({1: 1.0, 4: 1.8, 16: 3.2}), nothing(), 20).sizes

    assert sizes[:3] == [16, 4, 1]


def test_no_tree_is_larger_than_the_request_allows() -> None:
    assert max(decode(pacing(CARD).begin(40, False, False), step_costs(CARD), text(0.95), 600).sizes) == 32


def test_long_contexts_that_make_trees_dear_are_decoded_plainly() -> None:
    curves = [curve(100, {1: 3.0, 8: 3.5}), curve(1100, {1: 4.0, 8: 12.0})]
    pace = Pacing(StepCosts(curves, most_tokens=9), COUNTED).begin(None, False, True)

    assert [pace.choose(rows) for rows in (100, 1000)] == [8, 1]


def test_a_request_begins_with_what_earlier_ones_found_unless_it_is_seeded() -> None:
    known, costs = pacing(PROCESSOR), step_costs(PROCESSOR)
    for _ in range(20):
        decode(known.begin(None, False, False), costs, nothing(), 400)
    tried = [
        sum(size > 1 for size in decode(known.begin(None, False, is_seeded), costs, nothing(), 40).sizes)
        for is_seeded in (False, True)
    ]

    assert 1 <= tried[0] <= 2 < tried[1]  # it may be unlike them


def test_a_seeded_request_takes_the_same_steps_whatever_came_before_it() -> None:
    fresh, used = pacing(PROCESSOR), pacing(PROCESSOR)
    decode(used.begin(None, False, False), step_costs(PROCESSOR), text(0.2, seed=5), 2000)
    sizes = [
        decode(known.begin(None, False, True), step_costs(PROCESSOR), text(0.6), 500).sizes for known in (fresh, used)
    ]

    assert sizes[0] == sizes[1]


def test_sampling_that_takes_its_time_is_part_of_what_a_tree_costs() -> None:
    costs = StepCosts([curve(100, {1: 3.0, 8: 4.0}), curve(100, {1: 3.2, 8: 9.0}, is_sampled=True)], most_tokens=9)
    known = Pacing(costs, COUNTED)
    sizes = [decode(known.begin(None, is_sampled, True), costs, text(0.6), 400).sizes for is_sampled in (False, True)]

    assert sum(size == 8 for size in sizes[0]) > 100 > sum(size == 8 for size in sizes[1])
