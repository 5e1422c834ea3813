"""What the finished demo model does on prompts it never saw, measured through the engine."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec

__all__ = ["Answered", "Measurer", "Speculated", "ratio", "read_prompts"]

TREE_NODES = (4, 8, 16, 32, 64)
ANSWER_TOKENS = 200
CONTINUATION_TOKENS = 96


@dataclass(frozen=True)
class Speculated:
    """Tokens per step, bonus included, by tree nodes: for all prompts, for questions and for source."""

    everything: dict[int, float]
    questions: dict[int, float]
    source: dict[int, float]


@dataclass(frozen=True)
class Answered:
    """One greedy answer; `ended` says whether the model stopped by itself."""

    text: str
    tokens: int
    steps: int
    ended: bool


class Measurer:
    """The demo model behind its engine, greedy."""

    def __init__(self, model: Path, heads: Path, tree_nodes: int, prompt_lookup: bool = True) -> None:
        config = EngineConfig(
            model=str(model), heads=str(heads), device="cpu", tree_nodes=tree_nodes, prompt_lookup=prompt_lookup
        )
        self._engine = Engine.load(config)
        self._codec = TextCodec.load(str(model))

    def answer(self, prompt: dict[str, Any], tree_nodes: int) -> Answered:
        """Answer a conversation, or continue a text."""
        is_chat = "messages" in prompt
        tokens = self._codec.encode_chat(prompt["messages"]) if is_chat else self._codec.encode(prompt["text"])
        request = GenerationRequest(
            prompt=tuple(tokens),
            sampling=SamplingParams(temperature=0.0),
            speculation=SpeculationParams(max_nodes=tree_nodes),
            max_tokens=ANSWER_TOKENS if is_chat else CONTINUATION_TOKENS,
        )
        deltas = list(self._engine.generate(request))
        written = [token for delta in deltas for token in delta.tokens]
        steps = sum(delta.step is not None for delta in deltas)
        return Answered(self._codec.decode(written), len(written), steps, deltas[-1].finish_reason == "stop")

    def tokens_per_step(self, prompts: Sequence[dict[str, Any]], nodes: Iterable[int]) -> Speculated:
        """Emitted tokens by verifying passes; the first token of an answer is the prompt's and counts in neither."""
        everything, questions, source = {}, {}, {}
        for count in nodes:
            answers = [(prompt, self.answer(prompt, count)) for prompt in prompts]
            everything[count] = ratio([answer for _, answer in answers])
            questions[count] = ratio([answer for prompt, answer in answers if "messages" in prompt])
            source[count] = ratio([answer for prompt, answer in answers if "text" in prompt])
        return Speculated(everything, questions, source)


def ratio(answers: Sequence[Answered]) -> float:
    """Tokens per step over all answers together."""
    steps = sum(answer.steps for answer in answers)
    return round(sum(answer.tokens - 1 for answer in answers) / steps, 3) if steps else 0.0


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The prompts of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
