"""What the text of an answer turns out to be, piece by piece: content, reasoning, tool calls."""

import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass

from server.schemas.tools import ToolCall, ToolCallDelta

__all__ = [
    "CallArguments",
    "CallOpened",
    "Content",
    "Event",
    "Reasoning",
    "WholeMessage",
    "call_delta",
    "fold",
    "new_call_id",
]

ID_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Content:
    """A piece of what the user reads, never empty."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model thinks before it answers, never empty."""

    text: str


@dataclass(frozen=True)
class CallOpened:
    """A call begins; `index` counts the calls of an answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments; the pieces of one call make up JSON."""

    index: int
    text: str


Event = Content | Reasoning | CallOpened | CallArguments


@dataclass(frozen=True)
class WholeMessage:
    """An answer in one piece; content is None where there are calls instead."""

    content: str | None
    reasoning: str | None
    tool_calls: list[ToolCall]


def fold(events: Iterable[Event]) -> WholeMessage:
    """The message that a stream of events makes up."""
    content: list[str] = []
    reasoning: list[str] = []
    opened: list[CallOpened] = []
    arguments: list[list[str]] = []
    for event in events:
        match event:
            case Content(text):
                content.append(text)
            case Reasoning(text):
                reasoning.append(text)
            case CallOpened():
                opened.append(event)
                arguments.append([])
            case CallArguments(index, text):
                arguments[index].append(text)
    calls: list[ToolCall] = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(pieces)}}
        for call, pieces in zip(opened, arguments, strict=True)
    ]
    return WholeMessage(
        content="".join(content) if content or not calls else None,
        reasoning="".join(reasoning) if reasoning else None,
        tool_calls=calls,
    )


def call_delta(event: CallOpened | CallArguments) -> ToolCallDelta:
    """A piece of a call as a stream carries it."""
    if isinstance(event, CallArguments):
        return {"index": event.index, "function": {"arguments": event.text}}
    return {
        "index": event.index,
        "id": event.id,
        "type": "function",
        "function": {"name": event.name, "arguments": ""},
    }


def new_call_id(length: int | None) -> str:
    """A random id: OpenAI's form, or as many letters and digits as a template insists on (`call_id_length`)."""
    drawn = "".join(secrets.choice(ID_ALPHABET) for _ in range(length if length is not None else 24))
    return drawn if length is not None else f"call_{drawn}"
