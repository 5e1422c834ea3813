"""Where an answer ends: at a stop token, at a limit, inside what one step emitted."""

from typing import Literal

from medusa_core.generation import Delta, EngineInfo, GenerationRequest, PromptStats, StepStats
from medusa_core.runners import StepResult

__all__ = ["Output"]


class Output:
    """The tokens of one answer so far, and where it must end."""

    def __init__(self, request: GenerationRequest, info: EngineInfo) -> None:
        """The answer to a request, of which nothing was emitted yet."""
        goes_on = request.ignore_eos and request.grammar is None
        eos = frozenset() if goes_on else frozenset(info.eos_token_ids)
        self.stops = request.stop_token_ids | eos
        room = info.max_context - len(request.prompt)
        self._left = room if request.max_tokens is None else min(room, request.max_tokens)
        self.finish_reason: Literal["stop", "length"] | None = None
        self.root = 0

    def emit(self, result: StepResult, prompt: PromptStats | None, step: StepStats | None) -> Delta:
        """Cut a step's tokens at the first stop token or limit inside it; `root` becomes the last of them uncut."""
        self.root = result.tokens[-1]
        kept = result.tokens[: self._left]
        stop = next((index for index, token in enumerate(kept) if token in self.stops), None)
        if stop is not None:
            kept, self.finish_reason = kept[: stop + 1], "stop"
        elif len(kept) == self._left:
            self.finish_reason = "length"
        self._left -= len(kept)
        logprobs = tuple(result.logprobs[: len(kept)]) if result.logprobs is not None else None
        return Delta(tuple(kept), prompt, step, self.finish_reason, logprobs)
