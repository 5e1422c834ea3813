"""A conversation replayed: the user's turns stay, the model's own answers take the place of the assistant's."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from medusa_core.errors import ConfigurationError
from medusa_core.training.records import Message, Record

__all__ = ["Replay", "Turns", "digest"]

Turns = Literal["all", "last"]

# An answer that is not there yet; some templates refuse an empty one.
STAND_IN = "..."


class Replay:
    """One record while it is answered, turn by turn. A text has one turn: its continuation.

    messages: what was said so far, as a chat template reads it.
    """

    def __init__(self, record: Record, turns: Turns) -> None:
        """Raises ConfigurationError for a conversation in which nobody is to be answered."""
        self.record = record
        self.messages: list[dict[str, Any]] = []
        self._cues = _cues(record.messages, turns) if record.text is None else [()]
        if not self._cues:
            raise ConfigurationError("there is nothing to answer, only the assistant speaks")
        self._written: list[str] = []
        self._reason = "stop"
        self.messages.extend(message.shown() for message in self._cues[0])

    @property
    def turn(self) -> int:
        """Which answer comes next, from 0."""
        return len(self._written)

    @property
    def is_finished(self) -> bool:
        """Whether every turn has its answer, or the last one was cut off so that nothing can follow it."""
        return len(self._written) == len(self._cues) or self._reason == "length"

    def last_asked(self) -> list[dict[str, Any]]:
        """What the model would be shown before the last answer, had it given all those before it."""
        asked = list(self.messages)
        for cue in self._cues[self.turn + 1 :]:
            asked += [{"role": "assistant", "content": STAND_IN}, *(message.shown() for message in cue)]
        return asked

    def answer(self, text: str, reason: Literal["stop", "length"]) -> None:
        """Say the model's next answer, and what the user says to it."""
        self._written.append(text)
        self._reason = reason
        if self.record.text is None:
            self.messages.append({"role": "assistant", "content": text})
        if not self.is_finished:
            self.messages.extend(message.shown() for message in self._cues[self.turn])

    def stop_here(self) -> None:
        """Leave the turns out that are not answered yet."""
        del self._cues[self.turn :]
        while self.messages and self.messages[-1]["role"] != "assistant":
            self.messages.pop()

    def line(self) -> dict[str, Any]:
        """The record of the answers, as a line of a data file."""
        facts = {"source": self.record.line, "digest": digest(self.record), "finish_reason": self._reason}
        if self.record.text is not None:
            return {"text": self.record.text + "".join(self._written), **facts}
        tools = {"tools": [dict(tool) for tool in self.record.tools]} if self.record.tools else {}
        return {"messages": self.messages, **tools, **facts}


def _cues(messages: Sequence[Message], turns: Turns) -> list[tuple[Message, ...]]:
    """What is said before each answer of the model, in order.

    `all` leaves the assistant's turns out, but for those that call tools: what a tool said belongs to the call that it
    answers. `last` keeps them all, up to the last turn that is not the assistant's.
    """
    kept = list(messages)
    while kept and kept[-1].role == "assistant":
        kept.pop()
    if turns == "last":
        return [tuple(kept)] if kept else []
    said = [message for message in messages if message.role != "assistant" or "tool_calls" in message.fields]
    cues: list[tuple[Message, ...]] = []
    waiting: list[Message] = []
    for index, message in enumerate(said):
        waiting.append(message)
        follows = said[index + 1] if index + 1 < len(said) else None
        goes_on = follows is not None and follows.role in ("assistant", "tool")
        if message.role in ("user", "tool") and not goes_on:
            cues.append(tuple(waiting))
            waiting = []
    return cues


def digest(record: Record) -> str:
    """A fingerprint of what a record asks, to notice when the line it came from has changed."""
    asked = [record.text, [message.shown() for message in record.messages], [dict(tool) for tool in record.tools]]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
