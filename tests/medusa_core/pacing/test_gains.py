import pytest

from medusa_core.calibration import Calibration
from medusa_core.pacing import Gains, echoed_tokens, expected_tokens


def test_averages_begin_with_what_is_known() -> None:
    tokens = {1: 1.0, 4: 1.7, 8: 2.0}

    assert Gains(tokens, 0.1).tokens() == pytest.approx(tokens)


def test_a_step_tells_what_every_smaller_tree_would_have_brought() -> None:
    gains = Gains({1: 1.0, 4: 1.5, 8: 1.5}, 0.1)
    for _ in range(200):
        gains.observe(8, [1, 3, 6])

    assert gains.tokens() == pytest.approx({1: 1.0, 4: 3.0, 8: 4.0}, abs=1e-6)


def test_a_larger_tree_is_expected_to_bring_in_proportion_to_what_the_smaller_one_does() -> None:
    tokens = {1: 1.0, 4: 2.0, 16: 3.0}
    better, worse = Gains(tokens, 0.1), Gains(tokens, 0.1)
    for _ in range(200):
        better.observe(4, [1, 2])
        worse.observe(4, [])

    assert better.tokens()[16] == pytest.approx(1 + 2 + 2.25 / 1.25)
    assert worse.tokens()[16] == pytest.approx(1 + 0 + 0.25 / 1.25)


def test_plain_steps_tell_nothing() -> None:
    gains = Gains({1: 1.0, 4: 2.0}, 0.1)
    gains.observe(1, [])

    assert gains.tokens() == pytest.approx({1: 1.0, 4: 2.0})


def test_what_is_seen_seldom_weighs_more_up_to_a_limit() -> None:
    often, seldom, hardly = (Gains({1: 1.0, 4: 2.0}, 0.01) for _ in range(3))
    for steps, gains in ((0, often), (4, seldom), (200, hardly)):
        for _ in range(steps):
            gains.observe(1, [])
        gains.observe(4, [])

    assert often.tokens()[4] == pytest.approx(1.99)
    assert seldom.tokens()[4] == pytest.approx(1 + 0.99**5)
    assert hardly.tokens()[4] == pytest.approx(1 + 0.99**7)


def test_expectations_are_lower_without_heads_and_know_every_size() -> None:
    sizes = (1, 2, 4, 12, 300)
    with_heads, without = expected_tokens(sizes, None, True), expected_tokens(sizes, None, False)

    assert sorted(with_heads.values()) == list(with_heads.values())
    assert all(1.0 < without[size] < with_heads[size] for size in sizes[1:])
    assert with_heads[1] == without[1] == 1.0


def test_expectations_are_what_was_counted_and_at_least_what_is_drafted_without_heads() -> None:
    counted = Calibration(((0.5, 0.2),), (9,), (1.0,), tokens_per_step={1: 1.0, 4: 1.9})
    heads_alone = Calibration(((0.8, 0.2),), (9,), (1.0,))

    assert expected_tokens((1, 2, 4), counted, True) == pytest.approx({1: 1.0, 2: 1.5, 4: 1.9})
    assert expected_tokens((1, 2, 64), heads_alone, True) == {
        1: 1.0,
        2: 1.8,
        64: expected_tokens((64,), None, False)[64],  # what others draft
    }


def test_an_echo_is_followed_as_deep_as_the_tree_and_the_drafters_go() -> None:
    assert echoed_tokens((1, 2, 4, 16, 64), 8) == pytest.approx(
        {1: 1.0, 2: 1.9, 4: 1 + 0.9 + 0.81 + 0.729, 16: 1 + 9 * (1 - 0.9**8), 64: 1 + 9 * (1 - 0.9**8)}
    )
