import pytest

from medusa_core.calibration import Place
from medusa_core.errors import ConfigurationError
from medusa_core.evaluation.answers import unwatched
from medusa_core.evaluation.measuring import LatencyPlan, count_tokens_per_step, latency_curve, sensible_nodes
from tests.cast import MockBackbone, Oracle, make_engine, run
from tests.medusa_core.evaluation.cast import PROMPTS, mock_engine

QUICK = LatencyPlan(context=20, rounds=2, steps=2)


def test_a_curve_tells_the_time_of_a_step_of_every_size_and_where_it_was_measured() -> None:
    curve = latency_curve(mock_engine(), PROMPTS, (1, 4, 8), QUICK, unwatched)

    assert list(curve.seconds) == [1, 4, 8]
    assert (curve.context, curve.place) == (20, Place("test", "float32", 1, "none"))


def test_the_sizes_take_turns_and_the_work_is_watched() -> None:
    backbone, seen = MockBackbone(), []
    engine = make_engine(backbone, tree_nodes=8)

    latency_curve(engine, PROMPTS, (1, 8), QUICK, lambda stage, share: seen.append((stage, share)))

    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert len(seen) == (QUICK.rounds + 1) * 2  # one round warms up
    assert {stage for stage, _ in seen} == {"timing steps"}


def test_a_context_that_the_model_does_not_hold_is_shortened() -> None:
    engine = mock_engine()  # 128 tokens
    curve = latency_curve(engine, PROMPTS, (1, 4), LatencyPlan(context=500, rounds=1, steps=2), unwatched)

    assert 80 < curve.context < 128


def test_a_size_the_engine_has_no_room_for_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="trees of 16 nodes were asked for, the engine holds 8"):
        latency_curve(mock_engine(), PROMPTS, (1, 16), QUICK, unwatched)


def test_a_context_too_short_for_steps_is_refused() -> None:
    engine = make_engine(MockBackbone(), max_context=16)

    with pytest.raises(ConfigurationError, match="a context of 16 tokens is too short"):
        latency_curve(engine, PROMPTS, (1,), QUICK, unwatched)


def test_tokens_per_step_are_counted_through_the_engine() -> None:
    prompt = PROMPTS[:1]
    plain = run(make_engine(MockBackbone()), prompt[0].tokens, max_tokens=60)
    oracle = Oracle(plain, len(prompt[0].tokens), MockBackbone().vocab_size)
    engine = make_engine(MockBackbone(), drafter=oracle, tree_nodes=16)

    assert count_tokens_per_step(engine, prompt, (16,), 13, unwatched) == {16: 4.0}
    assert count_tokens_per_step(mock_engine(), PROMPTS, (1,), 8, unwatched) == {1: 1.0}


def test_a_card_has_room_for_larger_trees_than_a_processor() -> None:
    assert max(sensible_nodes("cpu")) < max(sensible_nodes("cuda:0"))
    assert min(sensible_nodes("cpu")) == 1
