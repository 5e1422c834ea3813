from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.constraints import Grammar
from medusa_core.engine import Engine
from medusa_core.errors import InvalidParameter, PromptTooLong
from medusa_core.generation import Delta, GenerationRequest
from medusa_core.sampling import SamplingParams
from tests.cast import GREEDY, MockBackbone, Oracle, make_engine, random_heads, run, tiny_model
from tests.tiny_tokenizers import grammar_vocabulary

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
PLAIN = run(make_engine(MockBackbone()), PROMPT, max_tokens=60)


def oracle_engine(**options: object) -> Engine:
    """Every step of this engine emits four tokens."""
    oracle = Oracle(PLAIN, len(PROMPT), MockBackbone().vocab_size)
    return make_engine(MockBackbone(), drafter=oracle, tree_nodes=16, **options)  # type: ignore[arg-type]


def deltas(engine: Engine, **options: object) -> list[Delta]:
    return list(engine.generate(GenerationRequest(PROMPT, GREEDY, **options)))  # type: ignore[arg-type]


def test_the_first_delta_tells_of_the_prompt_and_each_later_one_of_its_step() -> None:
    first, *steps = deltas(oracle_engine(), max_tokens=13)

    assert first.prompt is not None and first.step is None and len(first.tokens) == 1
    assert (first.prompt.prompt_tokens, first.prompt.cached_tokens) == (8, 0)
    assert [len(step.tokens) for step in steps] == [4, 4, 4]
    for step in steps:
        assert step.prompt is None and step.step is not None
        assert (sum(step.step.drafted.values()), len(step.step.accepted)) == (9, 3)


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 6, 7, 8, 9])
def test_max_tokens_cuts_inside_an_accepted_block(max_tokens: int) -> None:
    found = deltas(oracle_engine(), max_tokens=max_tokens)

    assert [token for delta in found for token in delta.tokens] == PLAIN[:max_tokens]
    assert [delta.finish_reason for delta in found] == [None] * (len(found) - 1) + ["length"]


@pytest.mark.parametrize("index", range(12))
def test_eos_and_stop_tokens_end_the_answer_inside_an_accepted_block(index: int) -> None:
    stop = PLAIN[index]
    expected = PLAIN[: PLAIN.index(stop) + 1]

    for engine, options in (
        (oracle_engine(eos=(stop,)), {}),
        (oracle_engine(), {"stop_token_ids": frozenset({stop})}),
    ):
        found = deltas(engine, max_tokens=40, **options)
        assert [token for delta in found for token in delta.tokens] == expected
        assert found[-1].finish_reason == "stop"


def test_a_stop_on_the_last_allowed_token_is_a_stop() -> None:
    stop = PLAIN[4]
    found = deltas(oracle_engine(eos=(stop,)), max_tokens=PLAIN.index(stop) + 1)

    assert found[-1].finish_reason == "stop"


def test_ignore_eos_goes_on_but_stop_tokens_still_stop() -> None:
    engine = oracle_engine(eos=(PLAIN[2],))

    assert run(engine, PROMPT, max_tokens=10, ignore_eos=True) == PLAIN[:10]
    stopped = run(engine, PROMPT, max_tokens=10, ignore_eos=True, stop_token_ids=frozenset({PLAIN[5]}))
    assert stopped == PLAIN[: PLAIN.index(PLAIN[5]) + 1]


@pytest.mark.parametrize("room", [1, 2, 3, 5, 9])
def test_the_context_ends_the_answer_also_where_the_tree_would_reach_beyond_it(room: int) -> None:
    engine = oracle_engine(max_context=len(PROMPT) + room)
    found = deltas(engine, max_tokens=50)

    assert [token for delta in found for token in delta.tokens] == PLAIN[:room]
    assert found[-1].finish_reason == "length"


def test_decoding_up_to_the_models_last_position_equals_plain_decoding() -> None:
    """A tree near the end holds slots beyond the last position."""
    backbone = MockBackbone()
    backbone.max_positions = 24
    heads = random_heads(backbone.lm_head)
    plain = run(make_engine(backbone, max_context=24), PROMPT)

    assert len(plain) == 16
    assert run(make_engine(backbone, heads, tree_nodes=16, max_context=24), PROMPT) == plain


def test_learnt_position_tables_are_never_read_beyond_their_end(tmp_path: object) -> None:
    from medusa_core.backbone import TransformersBackbone

    backbone = TransformersBackbone(tiny_model("gpt2", n_positions=24, max_position_embeddings=24))
    heads = random_heads(backbone.lm_head)
    plain = run(make_engine(backbone, max_context=24), PROMPT)

    assert run(make_engine(backbone, heads, tree_nodes=16, max_context=24), PROMPT) == plain


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_the_size_of_prefill_chunks_changes_nothing(chunk: int) -> None:
    assert run(make_engine(MockBackbone(), prefill_chunk=chunk), PROMPT, max_tokens=20) == PLAIN[:20]


def test_a_cancelled_prefill_stops_after_its_chunk_and_its_rows_stay_usable() -> None:
    backbone = MockBackbone()
    engine = make_engine(backbone, prefill_chunk=3, has_lookup=False)
    answers = iter([False, True])

    assert list(engine.generate(GenerationRequest(PROMPT, GREEDY, max_tokens=5), lambda: next(answers))) == []
    assert backbone.computed == 3
    assert run(engine, PROMPT, max_tokens=5) == PLAIN[:5]
    assert backbone.computed == 8 + 4


def test_a_cancelled_answer_stops_before_the_next_step() -> None:
    asked = 0

    def stop_at_third() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    found = list(make_engine(MockBackbone()).generate(GenerationRequest(PROMPT, GREEDY), stop_at_third))

    assert [token for delta in found for token in delta.tokens] == PLAIN[:3]
    assert found[-1].finish_reason is None


def test_an_abandoned_answer_leaves_the_engine_right_for_the_next() -> None:
    engine = oracle_engine()
    unfinished: Iterator[Delta] = engine.generate(GenerationRequest(PROMPT, GREEDY, max_tokens=50))
    next(unfinished), next(unfinished)

    assert run(engine, (*PROMPT[:5], 20), max_tokens=15) == run(
        make_engine(MockBackbone()), (*PROMPT[:5], 20), max_tokens=15
    )


def test_requests_without_a_seed_differ_and_with_one_repeat() -> None:
    engine = make_engine(MockBackbone())

    unseeded = {tuple(run(engine, PROMPT, SamplingParams(temperature=2.0), max_tokens=20)) for _ in range(3)}
    seeded = {tuple(run(engine, PROMPT, SamplingParams(2.0, seed=1), max_tokens=20)) for _ in range(3)}
    choices = {tuple(run(engine, PROMPT, SamplingParams(2.0, seed=1, choice=c), max_tokens=20)) for c in range(3)}

    assert (len(unseeded), len(seeded), len(choices)) == (3, 1, 3)


def test_typical_acceptance_takes_more_drafts_than_the_exact_rule() -> None:
    backbone = MockBackbone()
    engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=16)
    sampling = SamplingParams(temperature=1.0, seed=3)
    accepted = {}
    for rule in ("exact", "typical"):
        speculation = SpeculationParams(acceptance=rule, epsilon=0.01, delta=0.05)  # type: ignore[arg-type]
        request = GenerationRequest(PROMPT, sampling, speculation, max_tokens=60)
        accepted[rule] = sum(len(delta.step.accepted) for delta in engine.generate(request) if delta.step is not None)

    assert accepted["typical"] > accepted["exact"]


@pytest.mark.parametrize("mode", ["off", "chain", "tree", "auto"])
def test_the_mode_bounds_what_is_drafted(mode: str) -> None:
    backbone = MockBackbone()
    engine = make_engine(backbone, random_heads(backbone.lm_head, 3), tree_nodes=8)
    speculation = SpeculationParams(mode=mode)  # type: ignore[arg-type]
    request = GenerationRequest(PROMPT, GREEDY, speculation, max_tokens=10)

    drafted = {sum(delta.step.drafted.values()) for delta in engine.generate(request) if delta.step is not None}

    assert drafted == {{"off": 0, "chain": 3}.get(mode, 7)}


def test_max_nodes_lowers_the_tree_and_never_raises_it() -> None:
    backbone = MockBackbone()
    engine = make_engine(backbone, random_heads(backbone.lm_head, 3), tree_nodes=8)
    for asked, drafted in ((1, 0), (4, 3), (100, 7)):
        request = GenerationRequest(PROMPT, GREEDY, SpeculationParams(max_nodes=asked), max_tokens=6)
        assert {sum(d.step.drafted.values()) for d in engine.generate(request) if d.step is not None} == {drafted}


@pytest.mark.parametrize(
    ("request_", "error", "reason"),
    [
        (GenerationRequest((), GREEDY), InvalidParameter, "no tokens"),
        (GenerationRequest((1, 23), GREEDY), InvalidParameter, "token id 23 .* vocabulary of 23"),
        (GenerationRequest((-1,), GREEDY), InvalidParameter, "token id -1"),
        (GenerationRequest((1,), GREEDY, max_tokens=-1), InvalidParameter, "max_tokens is -1"),
        (GenerationRequest((1,), GREEDY, stop_token_ids=frozenset({99})), InvalidParameter, "token id 99"),
        (GenerationRequest((1,) * 128, GREEDY, max_tokens=5), PromptTooLong, "128 tokens.*133 tokens"),
    ],
)
def test_a_request_that_cannot_run_is_refused(request_: GenerationRequest, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        list(make_engine(MockBackbone()).generate(request_))


def test_log_probabilities_stop_where_the_tokens_stop() -> None:
    backbone = MockBackbone()
    plain = run(make_engine(backbone), PROMPT, max_tokens=30)
    engine = make_engine(backbone, drafter=Oracle(plain, len(PROMPT), backbone.vocab_size), tree_nodes=16)

    for delta in engine.generate(GenerationRequest(tuple(PROMPT), GREEDY, max_tokens=7, top_logprobs=0)):
        assert delta.logprobs is not None
        assert len(delta.logprobs) == len(delta.tokens)
        assert all(entry.top == () for entry in delta.logprobs)


def test_scoring_a_prompt_computes_all_of_it_though_the_cache_knows_it() -> None:
    engine = make_engine(MockBackbone())
    run(engine, PROMPT, max_tokens=3)

    request = GenerationRequest(tuple(PROMPT), GREEDY, max_tokens=0, top_logprobs=2, score_prompt=True)
    [delta] = engine.generate(request)

    assert delta.prompt is not None
    assert delta.prompt.cached_tokens == 0
    assert delta.prompt.logprobs is not None
    assert len(delta.prompt.logprobs) == len(PROMPT) - 1
    assert (delta.tokens, delta.finish_reason) == ((), "length")


LIST = Grammar.json_schema({"type": "array", "items": {"enum": ["ab", "ba", 12]}, "minItems": 3, "maxItems": 5}, False)
END = 2


def grammar_engine(heads: bool = True) -> Engine:
    backbone = MockBackbone()
    found = random_heads(backbone.lm_head) if heads else None
    vocabulary = grammar_vocabulary(backbone.vocab_size, END)
    return make_engine(backbone, found, tree_nodes=12, eos=(END,), vocabulary=vocabulary)


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(2.0, seed=5)], ids=["greedy", "seeded"])
def test_an_answer_that_follows_a_grammar_ends_with_it(sampling: SamplingParams, ignore_eos: bool) -> None:
    engine = grammar_engine()
    request = GenerationRequest(PROMPT, sampling, grammar=LIST.text, ignore_eos=ignore_eos)
    found = list(engine.generate(request))
    tokens = [token for delta in found for token in delta.tokens]

    walk = grammar_vocabulary(MockBackbone().vocab_size, END).compile(LIST.text)
    for token in tokens:
        assert walk.allowed()[token // 8] >> (token % 8) & 1
        walk.advance([token])
    assert tokens.count(END) == 1 and tokens[-1] == END
    assert found[-1].finish_reason == "stop"


def test_what_a_grammar_forces_is_drafted_and_accepted_with_and_without_heads() -> None:
    for heads in (True, False):
        request = GenerationRequest(PROMPT, SamplingParams(1.0, seed=5), grammar=LIST.text)
        steps = [delta.step for delta in grammar_engine(heads).generate(request) if delta.step is not None]

        assert "grammar" in {source for step in steps for source in step.accepted}
        assert all({"draft", "verify", "grammar", "accept", "emit"} == set(step.phases) for step in steps)


def test_no_branch_that_the_grammar_forbids_counts_as_drafted() -> None:
    """Behind the list only its end may come, so a tree of twelve nodes holds one."""
    request = GenerationRequest(PROMPT, GREEDY, grammar=Grammar.choice(["ab"]).text, max_tokens=1)
    engine = grammar_engine()
    assert len(list(engine.generate(request))) == 1

    whole = list(engine.generate(replace(request, max_tokens=None)))
    assert [delta.step.drafted for delta in whole if delta.step is not None] == [{"grammar": 1}]


def test_a_grammar_that_cannot_be_used_is_refused_before_anything_is_computed() -> None:
    engine = grammar_engine()

    with pytest.raises(InvalidParameter, match="grammar"):
        next(engine.generate(GenerationRequest(PROMPT, GREEDY, grammar="start: nowhere")))
    assert run(engine, PROMPT, max_tokens=20) == [token for token in PLAIN[: [*PLAIN, END].index(END) + 1][:20]]


def test_a_right_prediction_is_accepted_deeper_than_heads_reach() -> None:
    backbone = MockBackbone()
    engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=12)
    request = GenerationRequest(PROMPT, GREEDY, max_tokens=46, prediction=tuple(PLAIN[:46]))
    steps = [delta.step for delta in engine.generate(request) if delta.step is not None]

    # one token from the prompt, then nine a step: eight predicted, and the bonus
    assert [len(step.accepted) for step in steps] == [8] * 5
    assert {source for step in steps for source in step.accepted} == {"prediction"}


def test_a_prediction_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="token id 23"):
        next(make_engine(MockBackbone()).generate(GenerationRequest(PROMPT, GREEDY, prediction=(23,))))


def test_a_head_is_judged_by_the_tokens_behind_accepted_ones() -> None:
    backbone = MockBackbone()
    heads = random_heads(backbone.lm_head, 3)
    engine = make_engine(backbone, heads, tree_nodes=16)
    found = list(engine.generate(GenerationRequest(PROMPT, SamplingParams(1.0, seed=3), max_tokens=80)))
    steps = [delta.step for delta in found if delta.step is not None]

    assert all(len(step.head_hits) == min(3, len(step.accepted) + 1) for step in steps)
    hits = [hit for step in steps for hit in step.head_hits]
    assert any(hits) and not all(hits)
    off = GenerationRequest(PROMPT, GREEDY, SpeculationParams(mode="off"), max_tokens=5)
    assert all(delta.step.head_hits == () for delta in engine.generate(off) if delta.step is not None)


def test_a_loaded_engine_has_timed_its_plain_step(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    engine = Engine.load(EngineConfig(model=str(tmp_path)))

    assert 0.0 < engine.info.plain_step_s < 10.0


def test_heads_of_a_smaller_vocabulary_draft_under_a_grammar() -> None:
    backbone = MockBackbone()
    options = {"eos": (END,), "vocabulary": grammar_vocabulary(backbone.vocab_size, END)}
    engine = make_engine(backbone, random_heads(backbone.lm_head[:20]), tree_nodes=12, **options)  # type: ignore[arg-type]
    plain = make_engine(MockBackbone(), **options)  # type: ignore[arg-type]

    for speculation in (SpeculationParams(), SpeculationParams(mode="chain")):
        found = run(engine, PROMPT, SamplingParams(1.0, seed=2), grammar=LIST.text, speculation=speculation)
        assert found == run(plain, PROMPT, SamplingParams(1.0, seed=2), grammar=LIST.text)
