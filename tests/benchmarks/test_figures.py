import pytest

from benchmarks.through_http.figures import GENERATE, PLAIN, Limits, figures_of, parting, totals
from tests.benchmarks.cast import streamed

LIMITS = Limits(bytes_per_second=1e9, bytes_per_step=1e8)


def test_totals_count_each_prompt_once_with_the_median_of_its_repeats() -> None:
    found = totals({1: [streamed(decode_s=seconds) for seconds in (1.0, 9.0, 2.0)], 2: [streamed(decode_s=4.0)]})

    assert (found.tokens, found.steps) == (20, 10)
    assert found.decode_s == pytest.approx(6.0)
    assert found.tokens_per_step == 2.0


def test_an_answer_without_a_step_counts_for_nothing() -> None:
    assert totals({1: [streamed()], 2: [streamed(tokens=1, steps=0)]}) == totals({1: [streamed()]})


def test_a_peer_that_does_not_tell_of_steps_has_no_figures_about_them() -> None:
    silent = {1: [streamed(steps=None, worker_s=None)]}

    (figures,) = figures_of({"silent": silent}, "silent", LIMITS)

    about_steps = figures.tokens_per_step, figures.step_ms, figures.http_ms, figures.overhead, figures.identity
    assert about_steps == (None,) * 5
    assert figures.tokens_per_second.median == pytest.approx(10.0)


def test_speed_up_is_tokens_per_step_by_overhead_where_http_costs_nothing() -> None:
    plain = {1: [streamed(steps=10, decode_s=2.0, worker_s=2.0)]}
    tree = {1: [streamed(steps=4, decode_s=1.0, worker_s=1.0)]}

    figures = figures_of({PLAIN: plain, "tree": tree}, PLAIN, LIMITS)[1]

    assert figures.tokens_per_step == 2.5
    assert figures.overhead == pytest.approx(1.25)
    assert figures.over_plain == pytest.approx(2.0)
    assert figures.identity == pytest.approx(1.0)
    assert figures.share_of_limit == pytest.approx(0.4)


def test_time_that_no_step_accounts_for_shows_in_the_identity_and_as_http() -> None:
    plain = {1: [streamed(steps=10, decode_s=2.0, worker_s=2.0)]}
    tree = {1: [streamed(steps=4, decode_s=1.2, worker_s=1.0)]}

    figures = figures_of({PLAIN: plain, "tree": tree}, PLAIN, LIMITS)[1]

    assert figures.http_ms == pytest.approx(50.0)
    assert figures.identity == pytest.approx(1.2)


def test_what_the_worker_does_not_compute_is_what_http_takes() -> None:
    (figures,) = figures_of(
        {PLAIN: {1: [streamed(steps=10, decode_s=2.0, worker_s=1.9, computed_s=1.8)]}}, PLAIN, LIMITS
    )

    assert figures.step_ms == pytest.approx(190.0)
    assert figures.http_ms == pytest.approx(20.0)


def test_speed_is_told_by_that_of_transformers() -> None:
    answers = {GENERATE: {1: [streamed(decode_s=3.0)]}, "other": {1: [streamed(decode_s=1.0)]}}

    assert [one.over_generate for one in figures_of(answers, GENERATE, LIMITS)] == pytest.approx([1.0, 3.0])


def test_answers_that_are_not_the_references_are_counted_with_the_place_where_they_part() -> None:
    answers = {"reference": {1: [streamed(text="abc")], 2: [streamed(text="x")]}}
    answers["other"] = {1: [streamed(text="abd")], 2: [streamed(text="x")]}

    same, other = figures_of(answers, "reference", LIMITS)

    assert (same.differing, same.parted_at) == (0, ())
    assert (other.differing, other.parted_at) == (1, (2,))


def test_a_text_parts_from_a_longer_one_where_it_ends() -> None:
    assert parting("ab", "abc") == 2
    assert parting("", "abc") == 0
