import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from medusa_core.attending import attend_by_length, attend_faster
from medusa_core.backbone import TransformersBackbone
from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.drafters import Asked, DrafterSource, RootOnly
from medusa_core.engine import Engine
from medusa_core.generation import GenerationRequest
from medusa_core.kv_cache import KVCache
from medusa_core.runners import EagerRunner, GraphRunner, Runner
from medusa_core.sampling import SamplingParams
from tests.cast import CPU, FAMILIES, GREEDY, make_engine, random_heads, run, tiny_backbone
from tests.medusa_core.runners.cast import PROMPT, TapeLauncher, steps_of, tokens_of

FUSED = ["gemma", "llama", "phi3", "qwen2", "qwen3", "smollm3"]


def fused_backbone(family: str, **changes: Any) -> TransformersBackbone:
    backbone = tiny_backbone(family, **changes)
    backbone.fuse(256, compiled=False)
    return backbone


def by_length(family: str, **changes: Any) -> TransformersBackbone:
    backbone = fused_backbone(family, **changes)
    assert attend_by_length(backbone)
    return backbone


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_either_reads_rows_by_length_or_says_why_not(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medusa_core")
    backbone = fused_backbone(family)

    assert attend_by_length(backbone) == (family in FUSED) == (not backbone.has_buckets)
    reasons = [record.getMessage() for record in caplog.records if "attention reads buckets" in record.getMessage()]
    assert len(reasons) == (family not in FUSED)
    assert all(family in reason or "9 tokens back" in reason for reason in reasons)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(0.9, seed=3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", FUSED)
def test_answers_are_the_same_by_length_and_by_buckets(family: str, sampling: SamplingParams) -> None:
    answers = []
    for backbone in (fused_backbone(family), by_length(family)):
        engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=8, prefill_chunk=7)
        answers.append(run(engine, PROMPT, sampling, max_tokens=40))

    assert answers[1] == answers[0]


def test_a_window_that_no_context_reaches_is_no_reason_against_it() -> None:
    assert not by_length("mistral", sliding_window=256).has_buckets


def test_one_recording_serves_every_length_of_an_answer() -> None:
    answers, captured = [], []
    for backbone in (fused_backbone("llama", max_position_embeddings=600), by_length("llama")):
        cache, launcher = backbone.new_cache(512), TapeLauncher()
        runner = GraphRunner(backbone, cache, launcher)
        long = [token % 50 + 3 for token in range(200)]
        answers.append(tokens_of(steps_of(runner, backbone, cache, [RootOnly(CPU)], 70, prompt=long)))
        captured.append(launcher.log.count("capture"))

    assert captured == [2, 1]
    assert answers[1] == answers[0]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_replayed_trees_by_length_are_what_ordinary_steps_are(temperature: float) -> None:
    backbone = by_length("qwen2")
    source = DrafterSource(random_heads(backbone.lm_head), torch.ones(3), 16, 6, True, CPU)
    drafters = [source.get(Asked(SpeculationParams("tree", size), (), len(PROMPT), False)) for size in (4, 8)]
    found = []
    for make in (EagerRunner, lambda backbone, cache: GraphRunner(backbone, cache, TapeLauncher())):
        cache = backbone.new_cache(256)
        runner: Runner = make(backbone, cache)
        found.append(tokens_of(steps_of(runner, backbone, cache, drafters, 16, SamplingParams(temperature))))

    assert found[1] == found[0]


def test_prompts_filled_up_see_the_same_by_length() -> None:
    answers = []
    for backbone in (fused_backbone("llama"), by_length("llama")):

        def make(backbone: Any, cache: KVCache) -> Runner:
            return GraphRunner(backbone, cache, TapeLauncher())

        engine = make_engine(backbone, make_runner=make, lengths=(4, 8), prefill_chunk=8)
        answers.append([run(engine, [*PROMPT, *PROMPT][:length], max_tokens=6) for length in range(1, 20)])

    assert answers[1] == answers[0]


def test_kernels_that_compute_something_else_are_found_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "medusa_core")
    backbone = fused_backbone("llama")
    inner = backbone.forward

    class Wrong(TransformersBackbone):
        def __init__(self) -> None:
            self.__dict__.update(backbone.__dict__)

        def forward(self, *args: Any, **named: Any) -> Any:
            found = inner(*args, **named)
            return found if self.has_buckets else type(found)(found.hidden * torch.nan, found.logits)

    wrong = Wrong()

    assert not attend_by_length(wrong)
    assert wrong.has_buckets
    assert "parts from buckets by nan" in caplog.text


@pytest.mark.parametrize(("times", "has_buckets"), [((1.0, 0.5), False), ((1.0, 0.99), True), ((1.0, 3.0), True)])
def test_the_faster_way_is_taken_where_it_is_clearly_faster(times: tuple[float, ...], has_buckets: bool) -> None:
    backbone, clock = fused_backbone("llama"), iter(times)

    def seconds() -> float:
        return next(clock)

    attend_faster(backbone, seconds)

    assert backbone.has_buckets == has_buckets


def test_what_cannot_be_read_by_length_is_timed_once() -> None:
    def times() -> Iterator[float]:
        yield 1.0

    clock = times()
    backbone = fused_backbone("gemma2")
    attend_faster(backbone, lambda: next(clock))

    assert backbone.has_buckets


def test_the_demo_model_answers_the_same_whichever_way_is_asked_for() -> None:
    answers, names = [], ("auto", "bucketed", "device_length")
    for attention in names:
        options: Any = {"attention": attention, "self_test": False, "compile": False}
        engine = Engine.load(EngineConfig("demo", device="cpu", max_context=128, tree_nodes=4, **options))
        request = GenerationRequest(tuple(range(20, 40)), GREEDY, max_tokens=24)
        answers.append([token for delta in engine.generate(request) for token in delta.tokens])
        kernels = str(engine.info.place.kernels)
        assert attention == "auto" or ("by length" in kernels) == (attention == "device_length")

    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 24
