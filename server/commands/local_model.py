"""A model in this process, for the commands that talk to it."""

import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import Progress

from medusa_core.errors import ConfigurationError
from server.commands.spoken import Spoken

__all__ = ["Choices", "LocalModel", "check_mode", "loading", "stoppable"]

MODES = ("auto", "tree", "static", "chain", "off")

# Presses of Ctrl-C that only ask for the end: impatience is no reason to lose a conversation.
PATIENCE = 2


@dataclass(frozen=True)
class Choices:
    """How an answer is to be given; None leaves a field to the model or to the context."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    mode: str = "auto"


def check_mode(mode: str) -> None:
    """Raise ConfigurationError naming the option and its values."""
    if mode not in MODES:
        raise ConfigurationError(f"--mode is {mode!r}, it must be auto, tree, static, chain or off")


@contextmanager
def loading(console: Console) -> Iterator[Callable[[str, float], None]]:
    """What hears how far a model is loaded: a bar that is gone afterwards on a terminal, nothing elsewhere."""
    with Progress(console=console, transient=True, disable=not console.is_interactive) as progress:
        task = progress.add_task("loading", total=1.0)
        yield lambda stage, share: progress.update(task, description=stage, completed=share)


class LocalModel:
    """An engine and its tokenizer."""

    def __init__(self, engine: Any, codec: Any, name: str) -> None:
        """`engine` is a loaded Engine, `codec` a TextCodec of the same model."""
        self.name = name
        self._engine, self._codec = engine, codec

    @classmethod
    def load(
        cls, options: Mapping[str, Any], chat_template: Path | None, watch: Callable[[str, float], None]
    ) -> "LocalModel":
        """Load what EngineConfig's `options` say; `watch` hears the stage and the share done.

        Raises MedusaError where that cannot be done.
        """
        from medusa_core.text import TextCodec

        # first, because it takes no time: a wrong path is told before torch is loaded
        codec = TextCodec.load(options["model"], chat_template)
        from medusa_core import Engine, EngineConfig

        engine = Engine.load(EngineConfig(**options), watch)
        return cls(engine, codec, options["model"])

    @property
    def can_chat(self) -> bool:
        """Whether the model says how a conversation is written."""
        return bool(self._codec.has_chat_template)

    def describe(self) -> str:
        """What was loaded, in one line."""
        info = self._engine.info
        heads = f"{info.num_heads} heads" if info.num_heads > 0 else "no heads"
        return f"{self.name} on {info.device} ({info.dtype}), {heads}, {info.max_context} tokens of context"

    def reply(self, messages: Sequence[Mapping[str, Any]], choices: Choices, should_stop: Callable[[], bool]) -> Spoken:
        """Answer a conversation. Raises MissingChatTemplate, and InvalidParameter for what the template refuses."""
        return self._answer(self._codec.encode_chat(messages), (), choices, should_stop)

    def go_on(self, text: str, choices: Choices, should_stop: Callable[[], bool]) -> Spoken:
        """Continue a text."""
        tokens = self._codec.encode(text)
        return self._answer(tokens, tokens, choices, should_stop)

    def _answer(
        self, tokens: Sequence[int], context: Sequence[int], choices: Choices, should_stop: Callable[[], bool]
    ) -> Spoken:
        from medusa_core import GenerationRequest, SamplingParams, SpeculationParams

        chosen = dataclasses.asdict(choices)
        sampling = {name: chosen[name] for name in ("temperature", "top_p", "top_k", "min_p")}
        given = {name: value for name, value in sampling.items() if value is not None}
        request = GenerationRequest(
            prompt=tuple(tokens),
            sampling=SamplingParams(**{**self._engine.info.default_sampling, **given}, seed=choices.seed),
            speculation=SpeculationParams(mode=choices.mode),
            max_tokens=choices.max_tokens,
        )
        return Spoken(self._engine.generate(request, should_stop), self._codec.stream(prompt=context))


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """What says whether Ctrl-C was pressed meanwhile; pressed a third time, it ends what does not listen.

    The engine must not be torn out of a step, whose rows a later answer would rely on.
    """
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        if len(pressed) >= PATIENCE:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
