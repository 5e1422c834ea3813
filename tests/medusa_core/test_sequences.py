"""Requests of all kinds one after another through one engine, each compared with an engine that has seen nothing.

Whatever an engine keeps (rows, endings, recordings, what drafters learnt) must not show in an answer. Everything is
drawn from a seed, which a failure names.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
import torch

from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.constraints import Grammar
from medusa_core.engine import Engine
from medusa_core.generation import Delta, GenerationRequest
from medusa_core.kv_cache import KVCache, common_prefix
from medusa_core.runners import EagerRunner, GraphRunner, MakeRunner
from medusa_core.sampling import SamplingParams
from tests.cast import MockBackbone, make_engine, random_heads, run, tiny_backbone
from tests.medusa_core.runners.cast import TapeLauncher
from tests.tiny_tokenizers import grammar_vocabulary

END = 2
CONTEXT = 240
GRAMMARS = (
    Grammar.json_schema({"type": "array", "items": {"enum": ["ab", "ba", 12]}, "maxItems": 4}, is_lenient=False),
    Grammar.choice(["ab", "abab", "ba"]),
)
PLAIN = SpeculationParams(mode="off")


class FloatBackbone(MockBackbone):
    """Its hidden states are what heads in float32 can read."""

    def forward(self, *args: Any, **named: Any) -> Any:
        found = super().forward(*args, **named)
        return type(found)(found.hidden.float(), found.logits)


def recorded(backbone: Any, cache: KVCache) -> GraphRunner:
    return GraphRunner(backbone, cache, TapeLauncher())


@dataclass(frozen=True)
class House:
    """What an engine is built around; nothing of it remembers a request."""

    make_backbone: Callable[[], Any]
    has_heads: bool
    recycles: bool
    make_runner: MakeRunner

    def engine(self, backbone: Any, prefix_budget: int, prefill_chunk: int) -> Engine:
        return make_engine(
            backbone,
            random_heads(backbone.lm_head.float()) if self.has_heads else None,
            tree_nodes=12,
            max_context=CONTEXT,
            eos=(END,),
            prefill_chunk=prefill_chunk,
            vocabulary=grammar_vocabulary(backbone.vocab_size, END),
            prefix_budget=prefix_budget,
            make_runner=self.make_runner,
            recycles=self.recycles,
        )


HOUSES = {
    "heads": House(FloatBackbone, has_heads=True, recycles=False, make_runner=EagerRunner),
    "no heads": House(FloatBackbone, has_heads=False, recycles=True, make_runner=EagerRunner),
    "recorded steps": House(FloatBackbone, has_heads=True, recycles=True, make_runner=recorded),
    "llama": House(lambda: tiny_backbone("llama"), has_heads=True, recycles=True, make_runner=EagerRunner),
    "windowed": House(lambda: tiny_backbone("mistral"), has_heads=True, recycles=False, make_runner=EagerRunner),
}


@dataclass(frozen=True)
class Asked:
    """A request, and when its client loses interest: at which question whether to stop, or after how many deltas."""

    request: GenerationRequest
    cancelled_at: int | None
    abandoned_after: int | None

    def put_to(self, engine: Engine) -> list[Delta]:
        questions = 0

        def should_stop() -> bool:
            nonlocal questions
            questions += 1
            return questions == self.cancelled_at

        return list(islice(engine.generate(self.request, should_stop), self.abandoned_after))

    @property
    def is_cut(self) -> bool:
        return self.cancelled_at is not None or self.abandoned_after is not None


def a_sampling(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.0, 0.7, 1.0, 2.0]),
        top_p=rng.choice([1.0, 1.0, 0.8]),
        top_k=rng.choice([None, None, 5]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        seed=rng.choice([rng.randrange(100), rng.randrange(100), None]),
        choice=rng.choice([0, 0, 1, 2]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.3]),
        logit_bias=rng.choice([(), (), ((3, 2.0), (7, -100.0))]),
        min_tokens=rng.choice([0, 0, 6]),
    )


def a_speculation(rng: random.Random) -> SpeculationParams:
    return SpeculationParams(
        mode=rng.choice(["auto", "auto", "tree", "chain", "off"]),
        max_nodes=rng.choice([None, None, 1, 3, 7]),
        acceptance=rng.choice(["exact", "exact", "exact", "typical"]),
        epsilon=0.02,
        delta=0.1,
    )


def a_request(rng: random.Random, talks: Sequence[list[int]], vocab_size: int) -> Asked:
    """One more turn of a conversation, the same turn again, or an earlier place in it."""
    talk = rng.choice(talks)
    taken_back, next_turn = talk[: rng.randint(1, len(talk))], talk + numbers(rng, rng.randint(1, 40), vocab_size)
    prompt = rng.choice([talk, talk, taken_back, next_turn, next_turn])
    top_logprobs = rng.choice([None, None, 0, 3])
    has_grammar, cut = rng.random() < 0.15, rng.random()
    request = GenerationRequest(
        prompt=tuple(prompt[: CONTEXT - 1]),
        sampling=a_sampling(rng),
        speculation=a_speculation(rng),
        max_tokens=rng.choice([None, 0, 1, rng.randint(2, 24), rng.randint(2, 24)]),
        stop_token_ids=rng.choice([frozenset[int](), frozenset({11})]),
        ignore_eos=rng.random() < 0.5,
        top_logprobs=top_logprobs,
        score_prompt=top_logprobs is not None and rng.random() < 0.5,
        grammar=rng.choice(GRAMMARS).text if has_grammar else None,
        prediction=rng.choice([(), (), tuple(numbers(rng, 12, vocab_size))]),
        cache_salt=rng.choice([None, None, None, None, "a", "b"]),
    )
    if request.max_tokens is None:
        request = replace(request, max_tokens=60)
    return Asked(request, rng.randint(1, 6) if cut < 0.1 else None, rng.randint(0, 4) if cut > 0.9 else None)


def numbers(rng: random.Random, length: int, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(length)]


def tokens_of(deltas: Sequence[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


def assert_equal(found: Sequence[Delta], expected: Sequence[Delta]) -> None:
    """Tokens and how the answer ended, and how likely they were up to the rounding of other passes."""
    assert tokens_of(found) == tokens_of(expected)
    assert found[-1].finish_reason == expected[-1].finish_reason
    assert logprobs_of(found) == pytest.approx(logprobs_of(expected), abs=1e-3)
    first, fresh = found[0].prompt, expected[0].prompt
    assert first is not None and fresh is not None
    assert first.prompt_tokens == fresh.prompt_tokens
    assert (first.logprobs is None) == (fresh.logprobs is None)
    if first.logprobs is not None and fresh.logprobs is not None:
        own, others = ([entry.logprob for entry in values] for values in (first.logprobs, fresh.logprobs))
        assert own == pytest.approx(others, abs=1e-3)


def logprobs_of(deltas: Sequence[Delta]) -> list[float]:
    return [entry.logprob for delta in deltas if delta.logprobs is not None for entry in delta.logprobs]


def assert_cached_tokens_are_possible(asked: Asked, found: Sequence[Delta], seen: Sequence[tuple[Any, ...]]) -> None:
    """No more rows are found than a sequence of this salt has computed."""
    prompt, salt = asked.request.prompt, asked.request.cache_salt
    most = max((common_prefix(prompt, tokens) for other, *tokens in seen if other == salt), default=0)
    for delta in found[:1]:
        assert delta.prompt is not None
        assert delta.prompt.cached_tokens <= (0 if asked.request.score_prompt else most)


@pytest.mark.parametrize(("seed", "prefix_budget"), [(0, 1 << 24), (1, 60_000), (2, 0)])
@pytest.mark.parametrize("house", HOUSES.values(), ids=HOUSES)
def test_no_answer_shows_what_the_engine_was_asked_before(house: House, seed: int, prefix_budget: int) -> None:
    rng = random.Random(seed)
    backbone = house.make_backbone()
    used = house.engine(backbone, prefix_budget, rng.choice([16, 512]))
    vocab_size = used.info.vocab_size
    system = numbers(rng, 70, vocab_size)
    talks = [system + numbers(rng, length, vocab_size) for length in (5, 30, 60)] + [numbers(rng, 12, vocab_size)]
    seen: list[tuple[Any, ...]] = []

    for _ in range(16):
        asked = a_request(rng, talks, vocab_size)
        found = asked.put_to(used)

        assert_cached_tokens_are_possible(asked, found, seen)
        seen.append((asked.request.cache_salt, *asked.request.prompt, *tokens_of(found)))
        if asked.request.sampling.seed is not None or asked.request.sampling.temperature == 0.0:
            whole = list(house.engine(backbone, 0, 512).generate(asked.request))
            if asked.is_cut:
                assert tokens_of(found) == tokens_of(whole)[: len(tokens_of(found))]
            else:
                assert_equal(found, whole)
            if asked.request.speculation.acceptance == "exact":
                plain = house.engine(backbone, 0, 512).generate(replace(asked.request, speculation=PLAIN))
                assert tokens_of(whole) == tokens_of(list(plain))
        if rng.random() < 0.5:
            rng.choice(talks)[:] = [*asked.request.prompt, *tokens_of(found)][: CONTEXT - 45]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="recorded steps and copies on a device need a CUDA device")
def test_conversations_in_turn_on_cuda_are_answered_as_each_alone() -> None:
    config = EngineConfig("demo", device="cuda", dtype="float32", max_context=512, self_test=False)
    engine, rng = Engine.load(config), random.Random(3)
    system = numbers(rng, 70, engine.info.vocab_size)
    talks = [system + numbers(rng, 50, engine.info.vocab_size) for _ in range(3)]
    alone = []
    for talk in talks:
        engine.forget()
        alone.append(run(engine, talk, max_tokens=40))
    engine.forget()

    for turn in range(3):
        for talk, expected in zip(talks, alone, strict=True):
            [begun, *rest] = engine.generate(GenerationRequest(tuple(talk), SamplingParams(0.0), max_tokens=40))
            assert begun.prompt is not None
            assert begun.prompt.cached_tokens == len(talk) or turn == 0
            assert tokens_of([begun, *rest]) == expected
