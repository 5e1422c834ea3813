import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from medusa_core.config import SpeculationParams
from medusa_core.constraints import Grammar
from medusa_core.drafters import Asked, Drafter, DrafterSource, MedusaDrafter, RootOnly
from medusa_core.engine import Engine
from medusa_core.generation import GenerationRequest
from medusa_core.kv_cache import KVCache
from medusa_core.runners import EagerRunner, Runner
from medusa_core.runners.capture import PlainLauncher
from medusa_core.runners.cuda_graph import GraphRunner
from medusa_core.sampling import SamplingParams
from medusa_core.tree import TreeTopology
from tests.cast import CPU, GREEDY, MockBackbone, Oracle, make_engine, random_heads, tiny_backbone
from tests.medusa_core.runners.cast import PROMPT, TapeLauncher, steps_of, tokens_of
from tests.medusa_core.runners.samplings import SAMPLINGS
from tests.tiny_tokenizers import grammar_vocabulary


def drafters_for(backbone: Any, *nodes: int) -> list[Drafter]:
    """Heads and lookup in trees of these sizes."""
    heads = random_heads(backbone.lm_head.float())
    source = DrafterSource(heads, torch.ones(3), 16, 6, True, CPU)
    return [source.get(Asked(SpeculationParams("tree", size), (), len(PROMPT), False)) for size in nodes]


class FloatBackbone(MockBackbone):
    """Its hidden states are what heads in float32 can read."""

    def forward(self, *args: Any, **named: Any) -> Any:
        found = super().forward(*args, **named)
        return type(found)(found.hidden.float(), found.logits)


def both(
    backbone: Any, drafters: Sequence[Drafter], num_steps: int, sampling: SamplingParams = GREEDY, **asked: Any
) -> tuple[list[Any], list[Any], TapeLauncher]:
    """The same steps by the eager runner and by the recording one."""
    launcher, cache, other = TapeLauncher(), backbone.new_cache(512), backbone.new_cache(512)
    eager = steps_of(EagerRunner(backbone, cache), backbone, cache, drafters, num_steps, sampling, **asked)
    runner = GraphRunner(backbone, other, launcher)
    return eager, steps_of(runner, backbone, other, drafters, num_steps, sampling, **asked), launcher


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_replayed_steps_tell_what_eager_steps_tell(sampling: SamplingParams) -> None:
    backbone = FloatBackbone()
    eager, replayed, launcher = both(backbone, drafters_for(backbone, 8), 20, sampling, ends=(4, 7), top_logprobs=3)

    assert replayed == eager
    assert launcher.log.count("capture") == 1
    assert launcher.log.count("replay") == 20 + 1 - 3


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "llama", "mistral", "qwen3"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_every_family_answers_the_same_when_replayed(family: str, temperature: float) -> None:
    backbone = tiny_backbone(family)
    eager, replayed, launcher = both(backbone, drafters_for(backbone, 6), 10, SamplingParams(temperature))

    assert tokens_of(replayed) == tokens_of(eager)
    assert "replay" in launcher.log


def test_typical_acceptance_is_replayed_too() -> None:
    backbone = FloatBackbone()
    speculation = SpeculationParams(acceptance="typical")
    asked = backbone, drafters_for(backbone, 8), 12, SamplingParams(1.0)
    eager, replayed, launcher = both(*asked, speculation=speculation)

    assert replayed == eager
    assert launcher.log.count("capture") == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_whoever_drafts_nothing_makes_the_host_wait(temperature: float, caplog: pytest.LogCaptureFixture) -> None:
    backbone = FloatBackbone()
    heads = random_heads(backbone.lm_head.float())
    source = DrafterSource(heads, torch.ones(3), 16, 6, True, CPU, backbone.vocab_size)
    prediction = Asked(SpeculationParams("tree", 12), (3, 1, 4, 1, 5), len(PROMPT), False)
    eager, replayed, launcher = both(backbone, [source.get(prediction)], 12, SamplingParams(temperature))

    assert tokens_of(replayed) == tokens_of(eager)
    assert launcher.log.count("capture") == 1
    assert caplog.text == ""


def test_a_static_tree_and_a_root_alone_are_replayed_too() -> None:
    backbone = FloatBackbone()
    static = MedusaDrafter.static(random_heads(backbone.lm_head.float()), torch.ones(3), TreeTopology.chain(3))
    eager, replayed, launcher = both(backbone, [static, RootOnly(CPU)], 16)

    assert replayed == eager
    assert launcher.log.count("capture") == 2


def test_the_drafter_may_change_from_step_to_step() -> None:
    backbone = FloatBackbone()
    eager, replayed, launcher = both(backbone, drafters_for(backbone, 4, 8, 12, 1), 40)

    assert replayed == eager
    assert launcher.log.count("capture") == 4


def test_an_answer_grows_from_bucket_to_bucket() -> None:
    backbone = FloatBackbone()
    eager, replayed, launcher = both(backbone, [RootOnly(CPU)], 300)

    assert replayed == eager
    assert launcher.log.count("capture") == 2


def test_the_next_step_is_issued_before_the_last_one_is_read() -> None:
    backbone = FloatBackbone()
    _, _, launcher = both(backbone, [RootOnly(CPU)], 6)
    copied = [place for place, event in enumerate(launcher.log) if event.startswith("copy")]
    read = [place for place, event in enumerate(launcher.log) if event.startswith("read")]

    assert all(copied[step + 1] < read[step] for step in range(6))
    assert [event[-1] for event in launcher.log if event.startswith("read")] == ["0", "1"] * 3


def test_a_request_of_a_known_kind_needs_no_new_recording() -> None:
    backbone = FloatBackbone()
    launcher, cache, drafters = TapeLauncher(), backbone.new_cache(512), drafters_for(backbone, 8)
    runner = GraphRunner(backbone, cache, launcher)
    fresh = backbone.new_cache(512)
    for temperature, top_p, top_k, bias in [(0.7, 0.9, 20, 1.0), (1.4, 0.5, 3, -2.0), (0.2, 0.99, 9, 5.0)]:
        sampling = SamplingParams(
            temperature, top_p=top_p, top_k=top_k, logit_bias=((2, bias),), presence_penalty=bias / 5
        )
        asked = backbone, fresh, drafters, 12, sampling
        expected = steps_of(EagerRunner(backbone, fresh), *asked)

        assert steps_of(runner, backbone, cache, drafters, 12, sampling) == expected
    assert launcher.log.count("capture") == 1


def test_the_step_too_many_leaves_nothing_that_the_next_answer_reads() -> None:
    backbone = FloatBackbone()
    cache, fresh, drafters = backbone.new_cache(512), backbone.new_cache(512), drafters_for(backbone, 8)
    runner = GraphRunner(backbone, cache, TapeLauncher())
    for length in (7, 3, 1, 9):
        prompt = PROMPT[:length]
        expected = steps_of(EagerRunner(backbone, fresh), backbone, fresh, drafters, length, prompt=prompt)

        assert steps_of(runner, backbone, cache, drafters, length, prompt=prompt) == expected


def test_the_longest_unused_recording_goes_first() -> None:
    backbone = FloatBackbone()
    launcher, cache, drafters = TapeLauncher(), backbone.new_cache(512), drafters_for(backbone, 4, 8, 12)
    runner = GraphRunner(backbone, cache, launcher, most_recordings=2)
    for drafter in (drafters[0], drafters[1], drafters[0], drafters[2], drafters[0]):
        steps_of(runner, backbone, cache, [drafter], 6)

    assert launcher.log.count("capture") == 3
    steps_of(runner, backbone, cache, [drafters[1]], 6)
    assert launcher.log.count("capture") == 4


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_grammar_splits_the_step_into_three_recordings(temperature: float) -> None:
    backbone = FloatBackbone()
    source = DrafterSource(random_heads(backbone.lm_head.float()), torch.ones(3), 16, 6, True, CPU)
    drafters = [source.get(Asked(SpeculationParams("tree", size), (), len(PROMPT), True)) for size in (4, 8)]
    vocabulary, grammar = grammar_vocabulary(backbone.vocab_size, 2), Grammar.regex("[ab](,[ab]){60,90}").text
    launcher, cache, sampling = TapeLauncher(), backbone.new_cache(512), SamplingParams(temperature)
    asked = backbone, cache, drafters, 16, sampling
    eager = steps_of(EagerRunner(backbone, cache), *asked, constraint=vocabulary.compile(grammar))
    replayed = steps_of(GraphRunner(backbone, cache, launcher), *asked, constraint=vocabulary.compile(grammar))

    assert replayed == eager
    assert launcher.log.count("capture") == 2 * 3
    assert any(result.accepted for result in replayed)


def test_a_step_that_the_host_has_to_wait_for_is_never_recorded(caplog: pytest.LogCaptureFixture) -> None:
    backbone = FloatBackbone()
    oracle = Oracle(list(itertools.repeat(1, 60)), len(PROMPT), backbone.vocab_size)
    eager, replayed, launcher = both(backbone, [oracle], 8)

    assert replayed == eager
    assert "capture" not in launcher.log
    assert "makes the host wait" in caplog.text


def test_without_a_device_that_records_the_steps_are_simply_taken() -> None:
    backbone = FloatBackbone()
    cache, drafters = backbone.new_cache(512), drafters_for(backbone, 8)
    expected = steps_of(EagerRunner(backbone, cache), backbone, cache, drafters, 9)

    assert steps_of(GraphRunner(backbone, cache, PlainLauncher()), backbone, cache, drafters, 9) == expected


def recording(backbone: Any, cache: KVCache) -> Runner:
    return GraphRunner(backbone, cache, TapeLauncher())


def answers(engine: Engine, request: GenerationRequest) -> list[tuple[Any, ...]]:
    """What an answer's deltas hold, apart from times."""
    found = []
    for delta in engine.generate(request):
        step = delta.step
        counted = (step.drafted, step.accepted, step.head_hits) if step is not None else None
        found.append((delta.tokens, delta.finish_reason, delta.logprobs, counted))
    return found


def random_request(seed: int, room: int) -> GenerationRequest:
    """One of all that can be asked for."""
    chance = random.Random(seed)
    prompt = tuple(chance.randrange(3, 23) for _ in range(chance.randrange(1, room - 1)))
    sampling = SamplingParams(
        temperature=chance.choice([0.0, 0.8, 1.5]),
        top_p=chance.choice([1.0, 0.9]),
        top_k=chance.choice([None, 5, 70]),
        seed=seed,
        presence_penalty=chance.choice([0.0, 0.5]),
        repetition_penalty=chance.choice([1.0, 1.2]),
        logit_bias=chance.choice([(), ((4, 2.0),)]),
        min_tokens=chance.choice([0, 6]),
    )
    return GenerationRequest(
        prompt,
        sampling,
        SpeculationParams(chance.choice(["auto", "tree", "chain", "off"]), chance.choice([None, 1, 3, 8])),
        max_tokens=chance.choice([None, 1, 2, 9, 40]),
        stop_token_ids=frozenset(chance.sample(range(3, 23), chance.randrange(3))),
        top_logprobs=chance.choice([None, 0, 2]),
        prediction=prompt[: chance.choice([0, 4])],
        grammar=chance.choice([None, None, Grammar.regex("[ab](,[ab]){3,9}").text]),
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_in_sequence_are_answered_as_by_an_eager_engine(seed: int) -> None:
    backbone, room = FloatBackbone(), 60
    options: dict[str, Any] = {
        "heads": random_heads(backbone.lm_head.float()),
        "max_context": room,
        "eos": (2,),
        "vocabulary": grammar_vocabulary(backbone.vocab_size, 2),
    }
    replaying, eager = make_engine(backbone, make_runner=recording, **options), make_engine(backbone, **options)
    for number in range(12):
        request = random_request(100 * seed + number, room)

        assert answers(replaying, request) == answers(eager, request)
