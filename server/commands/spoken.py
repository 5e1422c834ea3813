"""An answer in the terminal as it grows: what each step adds to the text, and what the whole took."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Spelt", "Spoken", "Took", "told"]


@dataclass(frozen=True)
class Spelt:
    """What one token adds to the text, which is nothing while a character is half there.

    source: who proposed the token; `base` is the model itself, which adds one behind every accepted path.
    """

    text: str
    source: str


@dataclass(frozen=True)
class Took:
    """What an answer took.

    steps:         passes that verified a tree; the prompt's, which decides the first token, is none.
    step_tokens:   tokens that these steps delivered.
    first_s:       seconds until the first token.
    decode_s:      seconds from there to the end.
    cached_tokens: tokens of the prompt that had not to be computed.
    finish_reason: why it ended; None when somebody stopped it.
    """

    tokens: int
    steps: int
    step_tokens: int
    by_source: Mapping[str, int]
    prompt_tokens: int
    cached_tokens: int
    first_s: float
    decode_s: float
    finish_reason: str | None

    @property
    def tokens_per_s(self) -> float:
        """Of the steps; 0 where there were none."""
        return self.step_tokens / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def tokens_per_step(self) -> float:
        """How many tokens a step delivered; 0 where there were none."""
        return self.step_tokens / self.steps if self.steps > 0 else 0.0


class Spoken:
    """One answer. Iterate over its steps once; `text` and `took` are about what came so far."""

    def __init__(self, deltas: Iterable[Any], text: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the engine's deltas and spell their tokens with a TextStream whose text has not begun."""
        self.text = ""
        self._deltas, self._stream, self._clock = deltas, text, clock
        self._by_source: Counter[str] = Counter()
        self._steps = self._step_tokens = self._prompt_tokens = self._cached_tokens = 0
        self._first_s = self._decode_s = 0.0
        self._reason: str | None = None

    def __iter__(self) -> Iterator[list[Spelt]]:
        """What each step adds: first the prompt's token, then those of every tree."""
        asked = first = self._clock()
        for delta in self._deltas:
            now = self._clock()
            if delta.prompt is not None:
                first, self._first_s = now, now - asked
                self._prompt_tokens = delta.prompt.prompt_tokens
                self._cached_tokens = delta.prompt.cached_tokens
            self._decode_s, self._reason = now - first, delta.finish_reason
            yield self._spell(delta)
        # half a character, when somebody stopped the answer within it
        if rest := self._stream.finish():
            self.text += rest
            yield [Spelt(rest, "base")]

    def _spell(self, delta: Any) -> list[Spelt]:
        accepted = delta.step.accepted if delta.step is not None else ()
        sources = [accepted[place] if place < len(accepted) else "base" for place in range(len(delta.tokens))]
        self._by_source.update(sources)
        if delta.step is not None:
            self._steps += 1
            self._step_tokens += len(delta.tokens)
        # what ends an answer is counted and not shown
        shown = delta.tokens[:-1] if delta.finish_reason == "stop" else delta.tokens
        spelt = [Spelt(self._stream.push([token]).text, source) for token, source in zip(shown, sources, strict=False)]
        self.text += "".join(one.text for one in spelt)
        return spelt

    @property
    def took(self) -> Took:
        """The statistics of what came so far."""
        return Took(
            tokens=sum(self._by_source.values()),
            steps=self._steps,
            step_tokens=self._step_tokens,
            by_source=dict(self._by_source),
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            first_s=self._first_s,
            decode_s=self._decode_s,
            finish_reason=self._reason,
        )


def told(took: Took) -> str:
    """The statistics as one line."""
    parts = [f"{took.tokens} token" + "s" * (took.tokens != 1)]
    if took.steps > 0:
        parts += [f"{took.tokens_per_step:.2f} tokens per step", f"{took.tokens_per_s:.1f} tokens/s"]
    parts.append(f"first after {took.first_s:.2f} s")
    if took.cached_tokens > 0:
        parts.append(f"{took.cached_tokens} of {took.prompt_tokens} prompt tokens were known")
    parts.append(" ".join(f"{source} {count}" for source, count in sorted(took.by_source.items())))
    if took.finish_reason == "length":
        parts.append("cut at the limit")
    if took.finish_reason is None:
        parts.append("stopped")
    return f"[{', '.join(parts)}]"
