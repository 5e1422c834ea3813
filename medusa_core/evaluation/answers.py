"""One answer of one peer, with all that is measured about it."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from medusa_core.config import SpeculationParams
from medusa_core.engine import Engine
from medusa_core.evaluation.prompts import Prompt
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams

__all__ = ["Answer", "EnginePeer", "Peer", "Watch", "tokens_per_step", "unwatched"]

# Hears what is being done and the share that is done, 0 to 1.
Watch = Callable[[str, float], None]


def unwatched(stage: str, share: float) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Answer:
    """What one peer wrote, and what that took.

    tokens:       the first of them is the prompt's: prefill decided it, and it counts in no step.
    seconds:      of decoding, from the first token to the last.
    step_seconds: of each verifying pass; empty for a peer that does not tell.
    accepted:     drafted tokens that were accepted, bonus not included, by who drafted them.
    """

    tokens: tuple[int, ...]
    seconds: float
    step_seconds: tuple[float, ...]
    accepted: Mapping[str, int]

    @property
    def step_tokens(self) -> int:
        """Tokens that steps emitted, bonus included."""
        return len(self.tokens) - 1


class Peer(Protocol):
    """Answers prompts, and says what it took."""

    def answer(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Answer:
        """Answer one prompt from an empty cache."""
        ...


class EnginePeer:
    """Our engine, speculating in one way."""

    def __init__(self, engine: Engine, speculation: SpeculationParams) -> None:
        self._engine, self._speculation = engine, speculation

    def answer(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Answer:
        """See Peer.answer."""
        self._engine.forget()
        request = GenerationRequest(prompt.tokens, sampling, self._speculation, max_tokens)
        tokens: list[int] = []
        step_seconds: list[float] = []
        accepted: Counter[str] = Counter()
        started = time.perf_counter()
        for delta in self._engine.generate(request):
            tokens += delta.tokens
            if delta.step is None:
                started = time.perf_counter()  # decoding starts where prefill has decided the first token
            else:
                step_seconds.append(delta.step.seconds)
                accepted.update(delta.step.accepted)
        return Answer(tuple(tokens), time.perf_counter() - started, tuple(step_seconds), accepted)


def tokens_per_step(answers: list[Answer]) -> float | None:
    """Emitted tokens by verifying passes over all answers together, bonus included; None where no step was told."""
    steps = sum(len(answer.step_seconds) for answer in answers)
    return sum(answer.step_tokens for answer in answers) / steps if steps > 0 else None
