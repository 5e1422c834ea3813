"""What one request leaves behind for the next: cached rows, recycled tokens, averages; and what it must not."""

from dataclasses import replace

import pytest

from medusa_core.calibration import Calibration, LatencyCurve
from medusa_core.config import SpeculationParams
from medusa_core.engine import Engine
from medusa_core.generation import GenerationRequest
from medusa_core.pacing.finding import situations
from medusa_core.sampling import SamplingParams
from tests.cast import GREEDY, MockBackbone, make_engine, random_heads, run

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
PLAIN = run(make_engine(MockBackbone()), PROMPT, max_tokens=60)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(seed=5)], ids=["greedy", "seeded"])
def test_a_cached_prefix_changes_nothing_but_the_work(sampling: SamplingParams) -> None:
    backbone = MockBackbone()
    engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=8)
    first = run(engine, PROMPT, sampling, max_tokens=20)
    longer = [*PROMPT, *first, 7, 8]
    expected = run(make_engine(MockBackbone()), longer, sampling, max_tokens=20)

    found = list(engine.generate(GenerationRequest(tuple(longer), sampling, max_tokens=20)))

    assert [token for delta in found for token in delta.tokens] == expected
    assert found[0].prompt is not None
    # all of the first conversation but its last token, which was decided and never computed
    assert found[0].prompt.cached_tokens >= len(PROMPT) + len(first) - 1


def test_the_same_prompt_again_computes_nothing_and_a_part_of_it_only_its_last_token() -> None:
    backbone = MockBackbone()
    engine = make_engine(backbone)
    first = run(engine, PROMPT, max_tokens=1)

    for prompt, computed in ((PROMPT, 0), (PROMPT[:5], 1), (PROMPT[:5], 0)):
        expected, before = run(make_engine(MockBackbone()), prompt, max_tokens=1), backbone.computed
        assert run(engine, prompt, max_tokens=1) == expected
        assert backbone.computed - before == computed
    assert first == PLAIN[:1]


def test_other_answers_to_a_prompt_compute_it_no_more_and_differ_by_their_choice() -> None:
    backbone = MockBackbone(sharpness=0.5)
    engine = make_engine(backbone, random_heads(backbone.lm_head))
    sampling = [SamplingParams(temperature=1.0, seed=3, choice=choice) for choice in range(3)]
    first = run(engine, PROMPT, sampling[0], max_tokens=9)

    others = []
    for one in sampling[1:]:
        [begun, *rest] = engine.generate(GenerationRequest(PROMPT, one, max_tokens=9))
        assert begun.prompt is not None
        assert begun.prompt.cached_tokens == len(PROMPT)
        others.append([token for delta in (begun, *rest) for token in delta.tokens])

    assert others == [run(make_engine(backbone), PROMPT, one, max_tokens=9) for one in sampling[1:]]
    assert len({tuple(answer) for answer in (first, *others)}) == 3


def test_another_answer_to_a_prompt_that_is_gone_computes_it() -> None:
    engine = make_engine(MockBackbone())
    second = SamplingParams(temperature=1.0, seed=3, choice=1)
    expected = run(make_engine(MockBackbone()), PROMPT, second, max_tokens=9)
    run(engine, PROMPT, GREEDY, max_tokens=3)
    run(engine, (7, 7, 7), GREEDY, max_tokens=3)

    assert run(engine, PROMPT, second, max_tokens=9) == expected


def test_rows_of_the_cache_are_shared_between_equal_salts_only() -> None:
    engine = make_engine(MockBackbone())

    def cached(salt: str | None, choice: int = 0) -> int:
        sampling = SamplingParams(1.0, seed=1, choice=choice)
        first = next(engine.generate(GenerationRequest(PROMPT, sampling, max_tokens=3, cache_salt=salt)))
        assert first.prompt is not None
        return first.prompt.cached_tokens

    assert [cached(None), cached(None), cached("a"), cached("a"), cached("b", 1), cached("b")] == [0, 8, 0, 8, 0, 8]


def recycled(engine: Engine, sampling: SamplingParams = GREEDY, salt: str | None = None) -> list[int]:
    """Of each step of one answer, how many nodes were recycled."""
    request = GenerationRequest(PROMPT, sampling, max_tokens=40, cache_salt=salt)
    return [delta.step.drafted.get("recycling", 0) for delta in engine.generate(request) if delta.step is not None]


def test_tokens_are_recycled_between_requests_of_equal_salt_only() -> None:
    engine = make_engine(MockBackbone(), has_lookup=False, recycles=True)
    in_first_step = [recycled(engine, salt=salt)[0] for salt in (None, None, "a", "a", "b", None)]

    assert [count > 0 for count in in_first_step] == [False, True, False, True, False, False]


def test_an_engine_that_forgets_drafts_as_if_it_were_new() -> None:
    engine = make_engine(MockBackbone(), has_lookup=False, recycles=True)
    first = recycled(engine)
    engine.forget()

    assert recycled(engine) == first


def test_with_a_seed_nothing_is_recycled_from_the_requests_before() -> None:
    engine, sampling = make_engine(MockBackbone(), has_lookup=False, recycles=True), SamplingParams(1.0, seed=3)
    first = recycled(engine, sampling)
    recycled(engine)

    assert recycled(engine, sampling) == first


def paced_engine() -> Engine:
    """An engine that chooses among trees of 1, 4 and 16 nodes, by steps that take as long as this calibration says."""
    backbone = MockBackbone()
    engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=16)
    taken = {1: 1.0, 4: 1.3, 16: 1.6}
    curves = [LatencyCurve(engine.info.place, at.rows, taken, at.is_sampled) for at in situations(engine.info)]
    calibration = Calibration(((0.9,),) * 3, (9,) * 3, (1.0,) * 3, tuple(curves))
    engine.info = replace(engine.info, tree_sizes=(1, 4, 16), calibration=calibration)
    engine.find_pace(0.0)
    return engine


def sizes_of(engine: Engine, mode: str, max_nodes: int | None = None, sampling: SamplingParams = GREEDY) -> list[int]:
    speculation = SpeculationParams(mode, max_nodes)  # type: ignore[arg-type]
    steps = engine.generate(GenerationRequest(PROMPT, sampling, speculation, max_tokens=60))
    return [delta.step.num_nodes for delta in steps if delta.step is not None]


def test_heads_that_are_wrong_are_soon_left_alone_in_auto_but_not_where_a_tree_is_asked_for() -> None:
    engine = paced_engine()

    assert sizes_of(engine, "auto")[-10:] == [1] * 10
    assert set(sizes_of(engine, "tree")) == {16}
    assert set(sizes_of(engine, "tree", 4)) == {4}
    assert max(sizes_of(engine, "auto", 4)) == 4


def test_changing_sizes_change_no_token() -> None:
    engine = paced_engine()
    for sampling in (GREEDY, SamplingParams(1.0, seed=3)):
        plain = run(make_engine(MockBackbone()), PROMPT, sampling, max_tokens=60)

        assert len(set(sizes_of(engine, "auto", sampling=sampling))) > 1
        assert run(engine, PROMPT, sampling, max_tokens=60) == plain


def test_an_answer_with_a_seed_takes_the_same_steps_whatever_was_asked_before() -> None:
    engine, sampling = paced_engine(), SamplingParams(1.0, seed=3)
    fresh = sizes_of(engine, "auto", sampling=sampling)
    for prompt in (PROMPT, PROMPT[::-1], PROMPT[:3]):
        run(engine, prompt, max_tokens=60)

    assert sizes_of(engine, "auto", sampling=sampling) == fresh


def test_steps_that_nobody_timed_are_timed_and_leave_nothing_behind() -> None:
    backbone = MockBackbone()
    engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=16, recycles=True)
    engine.info = replace(engine.info, tree_sizes=(1, 4, 16))
    engine.find_pace(0.0)

    first = next(engine.generate(GenerationRequest(PROMPT, GREEDY, max_tokens=5)))

    assert engine.info.tree_sizes[0] == 1
    assert first.prompt is not None and first.prompt.cached_tokens == 0
    assert run(engine, PROMPT, max_tokens=60) == PLAIN
