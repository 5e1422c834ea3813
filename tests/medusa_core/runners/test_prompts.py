from collections.abc import Sequence
from typing import Any

import pytest
import torch

from medusa_core.backbone import Forward
from medusa_core.decoding import OrdinaryPrompts, Prefilled, prefill
from medusa_core.generation import GenerationRequest
from medusa_core.kv_cache import KVCache
from medusa_core.runners import EagerRunner, GraphRunner, Runner, prompt_lengths
from medusa_core.runners.prompts import RecordedPrompts, coarse_bucket
from tests.cast import GREEDY, MockBackbone, make_engine, random_heads, run, tiny_backbone
from tests.medusa_core.runners.cast import TapeLauncher, never

LENGTHS = (4, 8, 16)


class Bench:
    """Prompts in recorded passes, beside ordinary ones into another cache."""

    def __init__(self, backbone: Any, rows: int = 512) -> None:
        self.backbone, self.launcher = backbone, TapeLauncher()
        self.cache, self.other = backbone.new_cache(rows), backbone.new_cache(rows)
        self.ordinary = OrdinaryPrompts(backbone, self.other)
        self.recorded = RecordedPrompts(
            backbone, self.cache, self.launcher, LENGTHS, OrdinaryPrompts(backbone, self.cache)
        )

    def check(self, prompt: Sequence[int], chunk: int = 16, kept: int = 0, top: int | None = None) -> None:
        """The same rows, hidden state and logits from both, behind so many rows that are kept of the last prompt."""
        found: list[Prefilled] = []
        for prompts, cache in ((self.recorded, self.cache), (self.ordinary, self.other)):
            cache.keep(kept)
            computed = prefill(prompts, cache, prompt, chunk, never, top)
            assert computed is not None
            found.append(computed)
        ours, theirs = found
        assert self.cache.tokens == self.other.tokens == list(prompt)
        rows = slice(0, len(prompt))
        torch.testing.assert_close(self.cache.buffer[..., rows, :], self.other.buffer[..., rows, :])
        torch.testing.assert_close(ours.last.hidden, theirs.last.hidden)
        torch.testing.assert_close(ours.last.logits, theirs.last.logits)
        assert len(ours.scores) == len(theirs.scores)
        for one, other in zip(ours.scores, theirs.scores, strict=True):
            torch.testing.assert_close(one.chosen, other.chosen)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 23, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_prompt_of_any_length_is_what_ordinary_passes_make_of_it_and_each_length_is_recorded_once() -> None:
    bench = Bench(MockBackbone())
    for seed in range(2):
        for length in [*range(1, 20), 31, 32, 33, 40]:
            bench.check(prompt_of(length, seed))

    assert bench.launcher.log.count("capture") == len(LENGTHS)
    assert bench.launcher.log.count("replay") > 50


def test_a_longer_piece_leaves_nothing_that_a_shorter_one_behind_it_sees() -> None:
    bench = Bench(MockBackbone())
    for length in (8, 5, 8, 5, 8, 5, 6, 7):
        bench.check(prompt_of(length, seed=length))

    assert "replay" in bench.launcher.log


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "llama", "mistral"])
def test_every_family_computes_the_same_in_recorded_passes(family: str) -> None:
    bench = Bench(tiny_backbone(family), rows=256)
    for seed in range(5):
        bench.check(prompt_of(21 + seed, seed))

    assert "replay" in bench.launcher.log


def test_a_prompt_goes_on_behind_rows_that_are_kept() -> None:
    bench = Bench(MockBackbone())
    prompt = prompt_of(60)
    for length, kept in ((20, 0), (30, 20), (25, 10), (60, 25), (60, 59), (41, 40)):
        bench.check(prompt[:length], kept=kept)

    assert "replay" in bench.launcher.log


def test_rows_that_do_not_fit_the_cache_are_computed_in_ordinary_passes() -> None:
    bench = Bench(MockBackbone(), rows=64)
    for _ in range(5):
        bench.check(prompt_of(63), kept=0)

    assert (
        bench.launcher.log.count("capture") == 1
    )  # 48 tokens in three passes of 16, and 15 that leave no room for one


def test_scored_prompts_are_computed_in_ordinary_passes() -> None:
    bench = Bench(MockBackbone())
    for _ in range(5):
        bench.check(prompt_of(20), top=3)

    assert bench.launcher.log == []


def test_positions_behind_the_last_are_those_of_slots_that_nobody_uses() -> None:
    bench = Bench(tiny_backbone("llama", max_position_embeddings=24), rows=64)
    for _ in range(5):
        bench.check(prompt_of(18))  # the pass reaches position 31

    assert "replay" in bench.launcher.log


def recording(lengths: Sequence[int]) -> Any:
    def make(backbone: Any, cache: KVCache) -> Runner:
        return GraphRunner(backbone, cache, TapeLauncher())

    return {"make_runner": make, "lengths": lengths, "prefill_chunk": 16}


class FloatBackbone(MockBackbone):
    """Its hidden states are what heads in float32 can read."""

    def forward(self, *args: Any, **named: Any) -> Forward:
        found = super().forward(*args, **named)
        return Forward(found.hidden.float(), found.logits)


def test_answers_are_the_same_whatever_of_their_prompts_is_cached_or_filled_up() -> None:
    backbone = FloatBackbone()
    heads = random_heads(backbone.lm_head.float())
    recorded = make_engine(backbone, heads, **recording(LENGTHS))
    ordinary = make_engine(backbone, heads)
    talk = prompt_of(70)
    for length in (5, 9, 30, 31, 12, 70, 44, 100 - 30, 3):
        prompt = [*talk[:length], length % 23]

        assert run(recorded, prompt, max_tokens=20) == run(ordinary, prompt, max_tokens=20)


def test_a_runner_that_records_nothing_computes_prompts_as_ever() -> None:
    backbone = MockBackbone()
    cache = backbone.new_cache(64)

    assert isinstance(EagerRunner(backbone, cache).prompts(LENGTHS), OrdinaryPrompts)
    assert isinstance(GraphRunner(backbone, cache, TapeLauncher()).prompts(()), OrdinaryPrompts)


def test_a_prompt_that_is_known_needs_no_pass_after_a_recorded_one_was_replayed() -> None:
    engine = make_engine(FloatBackbone(), **recording(LENGTHS))
    first, second = prompt_of(20, 1), prompt_of(20, 2)
    expected = [run(engine, prompt, max_tokens=4) for prompt in (first, second)]
    for _ in range(4):
        found = [run(engine, prompt, max_tokens=4) for prompt in (first, second)]

        assert found == expected


@pytest.mark.parametrize(("chunk", "lengths"), [(512, (64, 256, 512)), (256, (64, 256)), (40, (40,))])
def test_passes_are_as_long_as_a_chunk_or_one_of_few_shorter_lengths(chunk: int, lengths: tuple[int, ...]) -> None:
    assert prompt_lengths(chunk) == lengths


@pytest.mark.parametrize("rows", [1, 256, 257, 1000, 1025, 5000, 8192, 131072])
def test_a_bucket_holds_the_rows_and_not_many_more(rows: int) -> None:
    found = coarse_bucket(rows)

    assert rows <= found <= max(256, rows * 5 // 4 + 256)
    assert found % 256 == 0
    assert coarse_bucket(found) == found


def test_an_answer_to_no_more_than_a_prompt_is_recorded_too() -> None:
    engine = make_engine(FloatBackbone(), **recording(LENGTHS))
    request = GenerationRequest(tuple(prompt_of(7)), GREEDY, max_tokens=0)

    assert [delta.tokens for delta in engine.generate(request)] == [()]
