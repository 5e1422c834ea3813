"""Answers from the project's own engine: one prompt at a time, several tokens per forward pass."""

from collections.abc import Sequence

from medusa_core.engine import Engine
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams
from medusa_core.training.writer import Question

__all__ = ["EngineWriter"]


class EngineWriter:
    """Writes with tree decoding, under the exact rule: heads make it faster and change nothing of what it says."""

    name = "engine"

    def __init__(self, engine: Engine, ends: frozenset[int], sampling: SamplingParams) -> None:
        """`ends` go beside the end tokens that the model itself names."""
        self.ends = ends | frozenset(engine.info.eos_token_ids)
        self._engine, self._sampling = engine, sampling

    def write(self, questions: Sequence[Question]) -> list[list[int]]:
        """See Writer."""
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> list[int]:
        request = GenerationRequest(
            prompt=question.tokens,
            sampling=SamplingParams(
                temperature=self._sampling.temperature, top_p=self._sampling.top_p, seed=question.seed
            ),
            max_tokens=question.max_tokens,
            stop_token_ids=self.ends,
        )
        return [token for delta in self._engine.generate(request) for token in delta.tokens]
