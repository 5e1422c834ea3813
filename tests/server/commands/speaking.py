"""What stands in for a model in the tests of what talks with one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medusa_core import Delta, PromptStats, StepStats
from medusa_core.errors import MedusaError
from medusa_core.text import TextPiece
from server.commands.local_model import Choices
from server.commands.spoken import Spoken


class Letters:
    """A TextStream whose tokens are code points."""

    def push(self, tokens: Sequence[int]) -> TextPiece:
        return TextPiece("".join(map(chr, tokens)), len(tokens), False, (0,) * len(tokens))

    def finish(self) -> str:
        return ""


def deltas(text: str, mode: str = "auto", reason: str | None = "stop") -> list[Any]:
    """The engine's deltas for a text: with trees each step accepts one token of the heads beside its own."""
    tokens = [ord(letter) for letter in text] + ([0] if reason == "stop" else [])
    size = 1 if mode == "off" else 2
    found = [Delta((tokens[0],), PromptStats(4, 3, 0.5, None), None, reason if len(tokens) == 1 else None, None)]
    for start in range(1, len(tokens), size):
        kept = tuple(tokens[start : start + size])
        step = StepStats(size, {"heads": size - 1}, ("heads",) * (size - 1), (), 0.1, {})
        found.append(Delta(kept, None, step, reason if start + size >= len(tokens) else None, None))
    return found


class Echoing:
    """A speaker that answers with the last message in capitals, and keeps what it was asked."""

    name = "echo"

    def __init__(self, fails: MedusaError | None = None, plain_text: str | None = None) -> None:
        """plain_text: what it answers instead without speculation."""
        self.asked: list[tuple[list[Mapping[str, Any]], Choices]] = []
        self._fails, self._plain_text = fails, plain_text

    def reply(self, messages: Sequence[Mapping[str, Any]], choices: Choices, should_stop: Callable[[], bool]) -> Spoken:
        self.asked.append((list(messages), choices))
        if self._fails is not None:
            raise self._fails
        text = str(messages[-1]["content"]).upper()
        if choices.mode == "off" and self._plain_text is not None:
            text = self._plain_text
        ticks = iter(range(10**6))
        return Spoken(deltas(text, choices.mode), Letters(), clock=lambda: float(next(ticks)))
