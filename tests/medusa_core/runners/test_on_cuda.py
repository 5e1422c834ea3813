"""The recording runner on the device it is made for; everything around the recording is tested on a CPU elsewhere."""

from typing import Any

import pytest
import torch

from medusa_core.attending import attend_by_length
from medusa_core.backbone import TransformersBackbone
from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.constraints import Grammar
from medusa_core.decoding import OrdinaryPrompts, prefill
from medusa_core.drafters import Asked, Drafter, DrafterSource, MedusaDrafter, RootOnly
from medusa_core.engine import Engine
from medusa_core.generation import GenerationRequest
from medusa_core.quantization import quantize_in_place
from medusa_core.runners import EagerRunner, GraphRunner
from medusa_core.runners.capture import CudaLauncher
from medusa_core.sampling import SamplingParams
from medusa_core.tree import TreeTopology
from tests.cast import GREEDY, random_heads, tiny_model
from tests.medusa_core.runners.cast import PROMPT, never, steps_of, tokens_of
from tests.medusa_core.runners.samplings import SAMPLINGS
from tests.tiny_tokenizers import grammar_vocabulary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device, and there is none here"),
]
CUDA = torch.device("cuda")


def backbone_of(family: str, quantize: str | None = None) -> TransformersBackbone:
    model = tiny_model(family).to(CUDA)
    if quantize is not None:
        quantize_in_place(model, quantize, CUDA, torch.float32)
    return TransformersBackbone(model)


def drafters_of(backbone: TransformersBackbone, *nodes: int, has_grammar: bool = False) -> list[Drafter]:
    source = DrafterSource(random_heads(backbone.lm_head), torch.ones(3, device=CUDA), 16, 6, True, CUDA)
    return [source.get(Asked(SpeculationParams("tree", size), (), len(PROMPT), has_grammar)) for size in nodes]


def both(backbone: Any, drafters: list[Drafter], steps: int, sampling: SamplingParams = GREEDY, **asked: Any) -> Any:
    """The same steps by ordinary calls and by recorded ones."""
    cache, other = backbone.new_cache(512), backbone.new_cache(512)
    eager = steps_of(EagerRunner(backbone, cache), backbone, cache, drafters, steps, sampling, **asked)
    runner = GraphRunner(backbone, other, CudaLauncher(CUDA))
    return eager, steps_of(runner, backbone, other, drafters, steps, sampling, **asked)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(
    "family", ["gemma", "gemma2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"]
)
def test_every_family_answers_the_same_when_replayed(family: str, temperature: float) -> None:
    backbone = backbone_of(family)
    eager, replayed = both(backbone, drafters_of(backbone, 8), 40, SamplingParams(temperature))

    assert tokens_of(replayed) == tokens_of(eager)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_whatever_a_request_asks_for_is_replayed(sampling: SamplingParams) -> None:
    backbone = backbone_of("llama")
    eager, replayed = both(backbone, drafters_of(backbone, 8), 30, sampling, ends=(4, 7), top_logprobs=3)

    assert tokens_of(replayed) == tokens_of(eager)
    for one, other in zip(replayed, eager, strict=True):
        found = [score.logprob for score in one.logprobs]
        assert found == pytest.approx([score.logprob for score in other.logprobs], abs=1e-4)


def test_drafters_and_buckets_may_change_from_step_to_step() -> None:
    backbone = backbone_of("llama", None)
    static = MedusaDrafter.static(random_heads(backbone.lm_head), torch.ones(3, device=CUDA), TreeTopology.chain(3))
    drafters = [*drafters_of(backbone, 4, 12), static, RootOnly(CUDA)]
    eager, replayed = both(backbone, drafters, 180)

    assert tokens_of(replayed) == tokens_of(eager)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_grammar_is_asked_between_the_recorded_parts(temperature: float) -> None:
    backbone = backbone_of("llama")
    drafters, sampling = drafters_of(backbone, 8, has_grammar=True), SamplingParams(temperature)
    vocabulary, grammar = grammar_vocabulary(backbone.vocab_size, 2), Grammar.regex("[ab](,[ab]){60,90}").text
    cache, found = backbone.new_cache(512), []
    for runner in (EagerRunner(backbone, cache), GraphRunner(backbone, cache, CudaLauncher(CUDA))):
        constraint = vocabulary.compile(grammar)
        steps = steps_of(runner, backbone, cache, drafters, 20, sampling, constraint=constraint)
        found.append(tokens_of(steps))

    assert found[1] == found[0]


def test_a_base_in_int8_is_replayed() -> None:
    pytest.importorskip("torchao", reason="int8 weights need torchao")
    backbone = backbone_of("llama", "int8")
    eager, replayed = both(backbone, drafters_of(backbone, 8), 30)

    assert tokens_of(replayed) == tokens_of(eager)


def test_more_kinds_of_steps_than_are_kept_are_recorded_again() -> None:
    backbone = backbone_of("llama")
    cache, drafters = backbone.new_cache(512), drafters_of(backbone, 2, 4, 6, 8)
    runner = GraphRunner(backbone, cache, CudaLauncher(CUDA), most_recordings=2)
    expected = [tokens_of(steps_of(EagerRunner(backbone, cache), backbone, cache, [one], 8)) for one in drafters]

    for _ in range(2):
        assert [tokens_of(steps_of(runner, backbone, cache, [one], 8)) for one in drafters] == expected


@pytest.mark.parametrize("is_watched", [False, True])
def test_replayed_steps_never_make_the_host_wait_for_anything_but_their_row(is_watched: bool) -> None:
    backbone = backbone_of("llama")
    cache, drafters = backbone.new_cache(512), drafters_of(backbone, 8)
    runner = GraphRunner(backbone, cache, CudaLauncher(CUDA))
    steps_of(runner, backbone, cache, drafters, 8, is_watched=is_watched)
    mode = torch.cuda.get_sync_debug_mode()
    asked = backbone, cache, drafters, 24
    try:
        found = steps_of(
            runner,
            *asked,
            before_steps=lambda: torch.cuda.set_sync_debug_mode("error"),
            is_watched=is_watched,
        )
    finally:
        torch.cuda.set_sync_debug_mode(mode)

    assert len(found) == 24
    assert all((step.detail is not None) == is_watched for step in found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demo_model_answers_the_same_when_replayed(dtype: str) -> None:
    answers = []
    for runner in ("eager", "cuda_graph"):
        config = EngineConfig("demo", device="cuda", dtype=dtype, runner=runner, max_context=512, self_test=False)  # type: ignore[arg-type]
        engine = Engine.load(config)
        request = GenerationRequest(tuple(range(20, 40)), GREEDY, SpeculationParams("tree", 16), 200, ignore_eos=True)
        answers.append([token for delta in engine.generate(request) for token in delta.tokens])

    assert len(answers[1]) == 200
    if dtype == "float32":  # rounded to few bits, near-ties may fall either way
        assert answers[1] == answers[0]


def fused_backbone(dtype: torch.dtype) -> TransformersBackbone:
    backbone = TransformersBackbone(tiny_model("llama", head_dim=16).to(CUDA, dtype))
    backbone.fuse(256, compiled=False)
    return backbone


def test_attention_by_length_runs_on_this_device_and_its_steps_are_replayed() -> None:
    backbone = fused_backbone(torch.bfloat16)
    drafters = drafters_of(backbone, 8)
    assert attend_by_length(backbone)
    eager, replayed = both(backbone, drafters, 60)

    assert tokens_of(replayed) == tokens_of(eager)


def test_steps_that_are_compiled_before_they_are_recorded_answer_the_same() -> None:
    backbone = fused_backbone(torch.float32)
    drafters = drafters_of(backbone, 8)
    eager, _ = both(backbone, drafters, 40)
    backbone.compile_steps("inductor")
    cache = backbone.new_cache(512)
    replayed = steps_of(GraphRunner(backbone, cache, CudaLauncher(CUDA)), backbone, cache, drafters, 40)

    assert tokens_of(replayed) == tokens_of(eager)


def test_prompts_in_recorded_passes_are_what_ordinary_ones_make_of_them() -> None:
    backbone = fused_backbone(torch.float32)
    cache, other = backbone.new_cache(256), backbone.new_cache(256)
    ordinary = OrdinaryPrompts(backbone, other)
    recorded = GraphRunner(backbone, cache, CudaLauncher(CUDA)).prompts((8, 32))
    for length in (5, 30, 8, 31, 7, 6, 32, 5, 40, 33):
        prompt = [3 + place % 50 for place in range(length)]
        cache.keep(0)
        other.keep(0)
        ours = prefill(recorded, cache, prompt, 32, never, None)
        theirs = prefill(ordinary, other, prompt, 32, never, None)
        assert ours is not None and theirs is not None

        torch.testing.assert_close(ours.last.logits, theirs.last.logits, atol=1e-3, rtol=1e-3)


def test_int8_lm_heads_draft_nearly_the_same() -> None:
    heads = random_heads(
        torch.randn(400, 64, device=CUDA, generator=torch.Generator(CUDA).manual_seed(1)), shared=False
    )
    rows = torch.randn(5, 64, device=CUDA, generator=torch.Generator(CUDA).manual_seed(2))
    exact = heads(rows)
    if not heads.quantize_lm_heads():
        pytest.skip("this torch has no product of int8 weights on CUDA")

    assert float((heads(rows) - exact).abs().max()) < 0.03 * float(exact.abs().max())
