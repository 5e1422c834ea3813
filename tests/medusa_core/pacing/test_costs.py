import pytest

from medusa_core.pacing import StepCosts
from tests.medusa_core.pacing.cast import curve


def test_a_step_is_as_dear_as_a_straight_line_through_two_contexts_says() -> None:
    costs = StepCosts([curve(1100, {1: 4.0, 8: 8.0}), curve(100, {1: 2.0, 8: 3.0})], most_tokens=9, delivery_s=0.0)

    assert [costs.seconds(8, rows, False) for rows in (0, 100, 600, 1100, 2100)] == pytest.approx(
        [0.003, 0.003, 0.0055, 0.008, 0.013]
    )


def test_one_context_is_taken_for_all() -> None:
    assert StepCosts([curve(100, {1: 2.0, 8: 3.0})], most_tokens=9, delivery_s=0.0).seconds(8, 5000, False) == 0.003


def test_noise_makes_no_long_context_cheaper_than_a_short_one() -> None:
    costs = StepCosts([curve(100, {1: 2.0, 8: 3.0}), curve(1100, {1: 1.9, 8: 2.9})], most_tokens=9, delivery_s=0.0)

    assert costs.seconds(8, 1100, False) == 0.003


def test_sizes_that_a_larger_tree_beats_at_any_acceptance_are_left_out() -> None:
    costs = StepCosts(
        [curve(100, {1: 2.0, 2: 3.0, 4: 3.01, 8: 4.0, 64: 17.0, 128: 18.1})], most_tokens=9, delivery_s=0.0
    )

    assert costs.sizes == (1, 4, 8, 64)  # 128 nodes take as long as 9 tokens take without a tree


def test_plain_decoding_is_always_among_the_sizes() -> None:
    assert StepCosts([curve(100, {1: 3.0, 8: 2.0})], most_tokens=9, delivery_s=0.0).sizes == (1, 8)


def test_only_sizes_that_both_contexts_know_are_chosen_from() -> None:
    costs = StepCosts(
        [curve(100, {1: 2.0, 4: 2.5, 8: 3.0}), curve(900, {1: 3.0, 8: 4.0})], most_tokens=9, delivery_s=0.0
    )

    assert costs.sizes == (1, 8)


def test_sampling_costs_the_same_more_behind_every_context() -> None:
    curves = [curve(100, {1: 2.0, 8: 3.0}), curve(1100, {1: 4.0, 8: 8.0}), curve(100, {1: 2.5, 8: 4.0}, True)]
    costs = StepCosts(curves, most_tokens=9, delivery_s=0.0)

    assert [costs.seconds(8, rows, True) for rows in (100, 1100)] == pytest.approx([0.004, 0.009])
    assert [costs.seconds(8, rows, False) for rows in (100, 1100)] == pytest.approx([0.003, 0.008])


def test_where_sampling_was_not_timed_it_costs_nothing() -> None:
    assert StepCosts([curve(100, {1: 2.0, 8: 3.0})], most_tokens=9, delivery_s=0.0).seconds(8, 100, True) == 0.003


def test_delivering_a_step_costs_the_same_whatever_its_size_and_counts_for_which_sizes_are_worth_it() -> None:
    curves = [curve(100, {1: 1.0, 8: 4.0, 16: 10.0}), curve(100, {1: 1.5, 8: 5.0, 16: 11.0}, True)]
    alone, delivered = (StepCosts(curves, most_tokens=9, delivery_s=delivery_s) for delivery_s in (0.0, 0.0005))

    assert alone.sizes == (1, 8)
    assert delivered.sizes == (1, 8, 16)
    assert [delivered.seconds(nodes, 100, False) for nodes in (1, 8)] == pytest.approx([0.0015, 0.0045])
    assert delivered.seconds(8, 100, True) == pytest.approx(0.0055)
