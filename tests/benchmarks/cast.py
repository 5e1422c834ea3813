"""Answers as a client might have seen them."""

from benchmarks.through_http.asking import Streamed
from medusa_core.evaluation.prompts import Prompt
from medusa_core.sampling import SamplingParams


def streamed(
    tokens: int = 11,
    decode_s: float = 1.0,
    steps: int | None = 5,
    worker_s: float | None = 0.8,
    computed_s: float | None = None,
    text: str = "same",
) -> Streamed:
    return Streamed(text, tokens, 0.1, 0.1 + decode_s, steps, worker_s, computed_s, {"heads": 3})


class NotingPeer:
    """Says in a shared list that it was asked, and what."""

    def __init__(self, name: str, asked: list[tuple[str, int]]) -> None:
        self._name, self._asked = name, asked

    def ask(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Streamed:
        self._asked.append((self._name, prompt.line))
        return streamed()
