"""Whether speculation changes any answer: trees against plain decoding on the same prompts, token by token."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medusa_core.config import EngineConfig, SpeculationMode, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.errors import ConfigurationError
from medusa_core.evaluation.answers import EnginePeer, Watch, unwatched
from medusa_core.evaluation.prompts import Prompt, fitting, of_each_kind, read_prompts
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams, gumbel_noise, noise_key
from medusa_core.text import TextCodec

__all__ = ["Divergence", "VerifyPlan", "VerifyReport", "verify", "verify_answers"]


@dataclass(frozen=True)
class VerifyPlan:
    """What is compared.

    temperatures: each prompt is answered once at each; 0 is greedy, any other draws with `seed`.
    max_tokens:   longest answer.
    limit:        prompts of each kind that are answered; None is all of them.
    """

    temperatures: tuple[float, ...] = (0.0, 1.0)
    seed: int = 0
    max_tokens: int = 128
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ConfigurationError(f"max_tokens is {self.max_tokens}, it must be at least 2")
        if self.limit is not None and self.limit < 1:
            raise ConfigurationError(f"limit is {self.limit}, it must be at least 1")
        if not self.temperatures or any(not 0.0 <= temperature <= 2.0 for temperature in self.temperatures):
            raise ConfigurationError(f"temperatures must be from 0 to 2, got {list(self.temperatures)}")


@dataclass(frozen=True)
class Divergence:
    """Where an answer first departs from plain decoding's.

    line:        of the prompt in its file.
    index:       of the token in the answer, from 0.
    plain, tree: token ids; None where that answer has ended.
    logit_gap:   by how much the model's logit of plain decoding's token exceeds the other's; None where one has ended.
    margin:      the same of what decided, the logits by temperature with the noise of this position; the logit gap
                 itself when greedy. A near-tie is a margin that rounding explains.
    """

    line: int
    temperature: float
    index: int
    plain: int | None
    tree: int | None
    plain_text: str
    tree_text: str
    logit_gap: float | None
    margin: float | None


@dataclass(frozen=True)
class VerifyReport:
    """What was found.

    must_agree:      whether equality is promised for this dtype; in others near-ties may fall either way.
    tokens_per_step: of the trees, bonus included.
    speed_up:        seconds per token of plain decoding by those with trees, over all answers; not a benchmark.
    """

    model: str
    heads: str | None
    dtype: str
    nodes: int
    prompts: int
    skipped: int
    answers: int
    tokens: int
    divergences: tuple[Divergence, ...]
    must_agree: bool
    tokens_per_step: float
    speed_up: float
    seconds: float

    @property
    def has_failed(self) -> bool:
        """Whether a promise was broken."""
        return self.must_agree and len(self.divergences) > 0


def verify(
    config: EngineConfig,
    prompts: Path,
    plan: VerifyPlan,
    chat_template: Path | None = None,
    watch: Watch = unwatched,
) -> VerifyReport:
    """Load a model and compare every answer; see verify_answers."""
    codec = TextCodec.load(config.model, chat_template)
    read = read_prompts(prompts, codec)
    if plan.limit is not None:
        read = of_each_kind(read, plan.limit)
    engine = Engine.load(config, watch)
    chosen = fitting(read, engine.info.max_context, plan.max_tokens)
    return verify_answers(engine, codec, chosen, plan, len(read) - len(chosen), watch)


def verify_answers(
    engine: Engine,
    codec: TextCodec,
    prompts: Sequence[Prompt],
    plan: VerifyPlan,
    skipped: int = 0,
    watch: Watch = unwatched,
) -> VerifyReport:
    """Answer every prompt at every temperature with trees and plainly.

    Raises ConfigurationError where trees have no room for a draft.
    """
    if engine.info.tree_nodes == 1:
        raise ConfigurationError("the trees have one node, so nothing is speculated; take more with --tree-nodes")
    # with trees of one size at every step, also where none would be used
    mode: SpeculationMode = "static" if engine.info.tree == "static" else "tree"
    plain, trees = (EnginePeer(engine, SpeculationParams(mode)) for mode in ("off", mode))
    divergences = []
    seconds, emitted, steps, tokens = [0.0, 0.0], [0, 0], 0, 0
    began = time.perf_counter()
    work = [(prompt, temperature) for prompt in prompts for temperature in plan.temperatures]
    for done, (prompt, temperature) in enumerate(work):
        watch("comparing answers", done / len(work))
        sampling = SamplingParams(temperature=temperature, seed=plan.seed)
        pair = [peer.answer(prompt, sampling, plan.max_tokens) for peer in (plain, trees)]
        for index, answer in enumerate(pair):
            seconds[index] += answer.seconds
            emitted[index] += answer.step_tokens
        steps, tokens = steps + len(pair[1].step_seconds), tokens + len(pair[0].tokens)
        found = _first_divergence(engine, codec, prompt, sampling, pair[0].tokens, pair[1].tokens)
        if found is not None:
            divergences.append(found)
    return VerifyReport(
        model=engine.info.model,
        heads=engine.info.heads,
        dtype=engine.info.dtype,
        nodes=engine.info.tree_nodes,
        prompts=len(prompts),
        skipped=skipped,
        answers=len(work),
        tokens=tokens,
        divergences=tuple(divergences),
        must_agree=engine.info.dtype == "float32",
        tokens_per_step=emitted[1] / steps if steps > 0 else 1.0,
        speed_up=(seconds[0] / max(emitted[0], 1)) / (seconds[1] / max(emitted[1], 1)),
        seconds=time.perf_counter() - began,
    )


def _first_divergence(
    engine: Engine,
    codec: TextCodec,
    prompt: Prompt,
    sampling: SamplingParams,
    plain: tuple[int, ...],
    tree: tuple[int, ...],
) -> Divergence | None:
    length = max(len(plain), len(tree))
    pairs = [
        (plain[index] if index < len(plain) else None, tree[index] if index < len(tree) else None)
        for index in range(length)
    ]
    index = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    if index is None:
        return None
    one, other = pairs[index]
    gap = margin = None
    if one is not None and other is not None:
        prefix = (*prompt.tokens, *plain[:index])
        gap = _logit_gap(engine, prefix, one, other)
        margin = _margin(gap, sampling, len(prefix), one, other, engine.info.vocab_size)
    texts = ["the end" if token is None else codec.decode([token], skip_special_tokens=False) for token in (one, other)]
    return Divergence(prompt.line, sampling.temperature, index, one, other, texts[0], texts[1], gap, margin)


def _logit_gap(engine: Engine, prefix: tuple[int, ...], one: int, other: int) -> float:
    """How much likelier the model finds one token than another behind a prefix, computed anew as plain decoding does.

    A difference of log-probabilities is one of logits.
    """
    everything = engine.info.vocab_size
    request = GenerationRequest(prefix, SamplingParams(temperature=0.0), max_tokens=1, top_logprobs=everything)
    (delta,) = engine.generate(request)
    assert delta.logprobs is not None, "they were asked for"
    logprobs = dict(delta.logprobs[0].top)
    return logprobs[one] - logprobs[other]


def _margin(gap: float, sampling: SamplingParams, position: int, one: int, other: int, vocab_size: int) -> float:
    """The gap as the draw at an absolute position sees it."""
    if sampling.temperature == 0.0:
        return gap
    assert sampling.seed is not None, "what is compared is seeded"
    key = torch.tensor(noise_key(sampling.seed, sampling.choice))
    noise = gumbel_noise(key, torch.tensor([position]), vocab_size)[0]
    return gap / sampling.temperature + float(noise[one] - noise[other])
