import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, cycle, islice, repeat

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


def echoing() -> Iterator[int]:
    """Repeats itself for a while, then says something new for a while."""
    for start in count(step=100):
        yield from islice(cycle(range(6)), 30)
        yield from range(start, start + 30)


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
@pytest.mark.parametrize("says", [lambda: count(), lambda: repeat(7), echoing], ids=["new", "always", "off and on"])
def test_no_answer_is_slower_than_plain_decoding_by_more_than_the_limit(
    curve_of: dict[int, float], late: int, is_seeded: bool, says: Callable[[], Iterator[int]]
) -> None:
    known = pacing(curve_of, looks_up=True)
    for tokens in (LIMIT_TOKENS, 150, 600):
        for accepted in (nothing(), spiteful(), text(0.1), text(0.3), text(0.5)):
            pace = known.begin(None, False, is_seeded, ())
            found = decode(pace, step_costs(curve_of), accepted, tokens, late, says())

            assert found.slowdown <= 1 + LIMIT + 1e-9


@pytest.mark.parametrize("accepted", [nothing, spiteful])
def test_trees_that_become_dear_with_the_context_lose_no_more(accepted: Callable[[], Iterator[Sequence[int]]]) -> None:
    curves = [curve(100, {1: 3.0, 8: 3.1}), curve(1100, {1: 4.0, 8: 14.0})]
    costs = StepCosts(curves, most_tokens=9, delivery_s=0.0)
    for tokens in (LIMIT_TOKENS, 400):
        found = decode(Pacing(costs, COUNTED, None).begin(None, False, True, ()), costs, accepted(), tokens)

        assert found.slowdown <= 1 + LIMIT + 1e-9


@CURVES
def test_a_short_answer_loses_the_time_of_a_few_tokens_at_most(curve_of: dict[int, float]) -> None:
    costs = step_costs(curve_of)
    for tokens in (1, 5, 20):
        found = decode(pacing(curve_of).begin(None, False, True, ()), costs, nothing(), tokens)

        assert found.seconds - found.plain <= LIMIT * LIMIT_TOKENS * costs.seconds(1, 100, False)


@CURVES
def test_where_trees_pay_it_is_hardly_slower_than_the_best_fixed_size(curve_of: dict[int, float]) -> None:
    costs = step_costs(curve_of)
    for share in (0.7, 0.9):
        found = decode(pacing(curve_of).begin(None, False, True, ()), costs, text(share), 2000)
        fixed = [decode(FixedPace(size), costs, text(share), 2000).slowdown for size in costs.sizes]

        assert found.slowdown <= 1.05 * min(fixed)


@CURVES
def test_where_nothing_pays_a_tree_is_tried_about_once_in_fifty_steps(curve_of: dict[int, float]) -> None:
    sizes = decode(pacing(curve_of).begin(None, False, True, ()), step_costs(curve_of), nothing(), 3000).sizes
    tried = sum(size > 1 for size in sizes[500:])

    assert 25 <= tried <= 55


def test_a_text_that_turns_guessable_is_noticed_within_a_few_dozen_steps() -> None:
    noticed = []
    for seed in range(20):
        accepted = chain(islice(nothing(), 300), text(0.75, seed))
        sizes = decode(pacing(PROCESSOR).begin(None, False, True, ()), step_costs(PROCESSOR), accepted, 1200).sizes[
            300:
        ]
        noticed.append(next(step for step in range(len(sizes)) if min(sizes[step : step + 20]) > 1))

    assert sorted(noticed)[10] <= 40 and sorted(noticed)[15] <= 80


def test_a_text_that_stops_being_guessable_is_decoded_plainly_soon() -> None:
    accepted = chain(islice(text(0.75), 200), nothing())
    sizes = decode(pacing(PROCESSOR).begin(None, False, True, ()), step_costs(PROCESSOR), accepted, 1200).sizes[200:]

    assert next(step for step in range(len(sizes)) if max(sizes[step : step + 8]) == 1) <= 60
    assert sum(size > 1 for size in sizes) <= 80


def test_larger_trees_are_found_where_much_more_is_accepted_than_was_calibrated() -> None:
    found = decode(pacing(PROCESSOR).begin(None, False, True, ()), step_costs(PROCESSOR), text(0.95), 600)

    assert found.sizes[-1] == 16


def test_without_trees_that_fit_every_step_is_plain() -> None:
    assert set(decode(pacing(PROCESSOR).begin(1, False, False, ()), step_costs(PROCESSOR), text(0.9), 300).sizes) == {1}


def test_a_smaller_tree_is_taken_where_the_fastest_could_lose_too_much() -> None:
    known = Pacing(step_costs({1: 1.0, 4: 1.3, 16: 3.2}), {1: 1.0, 4: 2.0, 16: 5.0}, None)
    sizes = decode(known.begin(None, False, True, ()), step_costs({1: 1.0, 4: 1.3, 16: 3.2}), nothing(), 20).sizes

    assert sizes[:3] == [16, 4, 1]


@pytest.mark.parametrize(("taken", "expected"), [(3.4, 8), (3.8, 1)])
def test_a_tree_behind_a_plain_step_is_counted_as_dearer_than_it_was_timed(taken: float, expected: int) -> None:
    # three plain steps may be lost, which is more than both take beyond one
    known = Pacing(step_costs({1: 1.0, 8: taken}), {1: 1.0, 8: 6.0}, None)

    assert known.begin(None, False, True, ()).choose(100) == expected


def test_no_tree_is_larger_than_the_request_allows() -> None:
    assert max(decode(pacing(CARD).begin(40, False, False, ()), step_costs(CARD), text(0.95), 600).sizes) == 32


def test_long_contexts_that_make_trees_dear_are_decoded_plainly() -> None:
    curves = [curve(100, {1: 3.0, 8: 3.5}), curve(1100, {1: 4.0, 8: 12.0})]
    pace = Pacing(StepCosts(curves, most_tokens=9, delivery_s=0.0), COUNTED, None).begin(None, False, True, ())

    assert [pace.choose(rows) for rows in (100, 1000)] == [8, 1]


def test_a_request_begins_with_what_earlier_ones_found_unless_it_is_seeded() -> None:
    known, costs = pacing(PROCESSOR), step_costs(PROCESSOR)
    for _ in range(20):
        decode(known.begin(None, False, False, ()), costs, nothing(), 400)
    tried = [
        sum(size > 1 for size in decode(known.begin(None, False, is_seeded, ()), costs, nothing(), 40).sizes)
        for is_seeded in (False, True)
    ]

    assert 1 <= tried[0] <= 2 < tried[1]  # it may be unlike them


def test_a_seeded_request_takes_the_same_steps_whatever_came_before_it() -> None:
    fresh, used = pacing(PROCESSOR), pacing(PROCESSOR)
    decode(used.begin(None, False, False, ()), step_costs(PROCESSOR), text(0.2, seed=5), 2000)
    sizes = [
        decode(known.begin(None, False, True, ()), step_costs(PROCESSOR), text(0.6), 500).sizes
        for known in (fresh, used)
    ]

    assert sizes[0] == sizes[1]


def test_sampling_that_takes_its_time_is_part_of_what_a_tree_costs() -> None:
    costs = StepCosts(
        [curve(100, {1: 3.0, 8: 4.0}), curve(100, {1: 3.2, 8: 9.0}, is_sampled=True)], most_tokens=9, delivery_s=0.0
    )
    known = Pacing(costs, COUNTED, None)
    sizes = [
        decode(known.begin(None, is_sampled, True, ()), costs, text(0.6), 400).sizes for is_sampled in (False, True)
    ]

    assert sum(size == 8 for size in sizes[0]) > 100 > sum(size == 8 for size in sizes[1])


def test_where_the_sequence_repeats_itself_a_large_tree_is_taken_at_once() -> None:
    pace = pacing(STEEP, looks_up=True).begin(None, False, True, [range(20)])
    found = []
    for token in [*range(50, 90), *range(12)]:
        found.append(pace.choose(100))
        path = list(range(1, found[-1])) if token in range(6, 12) else []
        pace.observe(found[-1], path, [token])

    assert set(found[10:46]) == {1}  # trees in vain are over, and the first six tokens of the echo
    assert set(found[46:52]) <= {8, 16}


def test_an_echo_that_goes_on_is_tried_although_weaker_ones_were_followed_in_vain() -> None:
    pace = pacing(STEEP, looks_up=True).begin(None, False, True, [range(20)])
    found = []
    for token in [0, 1, 2, 50, 51, 4, 5, 6, 52, 53, 7, 8, 9, 54, 55, *range(12)]:
        found.append(pace.choose(100))
        path = list(range(1, found[-1])) if token in range(6, 12) and len(found) > 15 else []
        pace.observe(found[-1], path, [token])

    assert 1 in found[17:21]  # three tokens said once more have promised too much
    assert set(found[21:27]) <= {8, 16}  # not so six of them


def test_what_an_echo_brought_is_not_expected_where_there_is_none() -> None:
    known, costs = pacing(STEEP, looks_up=True), step_costs(STEEP)
    for _ in range(20):
        decode(known.begin(None, False, False, ()), costs, repeat([1, 2, 3, 4, 5, 6, 7]), 400, text=repeat(7))
    sizes = decode(known.begin(None, False, False, ()), costs, nothing(), 60).sizes

    assert sum(size > 1 for size in sizes) <= 3


def test_the_texts_that_are_expected_are_part_of_what_may_be_repeated() -> None:
    known = pacing(STEEP, looks_up=True)
    texts = [[*range(1, 8)], [8, 8]], [[8, 8]]
    found = []
    for expected in texts:
        pace = known.begin(None, False, True, expected)
        pace.observe(pace.choose(100), [], [9])  # the one that is tried at the start anyway
        for token in range(1, 7):
            pace.observe(pace.choose(100), [], [token])
        found.append(pace.choose(100))

    assert found[0] > found[1] == 1


def test_a_span_that_a_grammar_forces_is_written_in_one_step_however_little_else_is_accepted() -> None:
    known, costs = pacing(STEEP), step_costs(STEEP)
    for _ in range(20):
        decode(known.begin(None, False, False, ()), costs, nothing(), 400)
    pace, found = known.begin(None, False, False, ()), []
    for step in range(60):
        forced = 6 if step % 5 == 4 else 0
        found.append(pace.choose(100, forced))
        pace.observe(found[-1], list(range(1, 1 + min(forced, found[-1] - 1))), [step])

    assert set(found[4::5]) == {8}
    assert sum(size > 1 for step, size in enumerate(found) if step % 5 < 4) <= 4


def test_one_forced_token_is_no_reason_for_a_tree_that_takes_as_long_as_two_steps() -> None:
    chosen = [
        pacing(curve).begin(None, False, True, ()) for curve in ({1: 1.0, 2: 2.1, 4: 2.3}, {1: 1.0, 2: 1.9, 4: 2.3})
    ]
    for pace in chosen:
        for step in range(20):
            pace.observe(pace.choose(100), [], [step])

    assert [pace.choose(100, 1) for pace in chosen] == [1, 2]
    assert [pace.choose(100, 3) for pace in chosen] == [4, 4]


def test_no_span_is_longer_than_the_drafters_go() -> None:
    costs = StepCosts([curve(100, {1: 1.0, 4: 1.5, 16: 4.0})], most_tokens=5, delivery_s=0.0)
    pace = Pacing(costs, {1: 1.0, 4: 1.0, 16: 1.0}, None).begin(None, False, True, ())

    assert pace.choose(100, 40) == 4
