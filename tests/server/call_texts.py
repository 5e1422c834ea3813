"""Texts that are cut into pieces, and the calls that a stream finds in them."""

from collections.abc import Callable, Sequence
from itertools import count

import pytest

from medusa_core.tool_formats import TOOL_FORMATS
from server.call_events import Event, WholeMessage, fold
from server.tool_calls import CallStream

every_format = pytest.mark.parametrize("tool_format", TOOL_FORMATS, ids=lambda row: row.name)


def numbered() -> Callable[[], str]:
    numbers = count()
    return lambda: f"id{next(numbers)}"


def pieces(text: str, length: int) -> list[str]:
    return [text[start : start + length] for start in range(0, len(text), length)]


def events_of(stream: CallStream, texts: Sequence[str]) -> list[Event]:
    return [*(event for text in texts for event in stream.feed(text)), *stream.finish()]


def message_of(stream: CallStream, *texts: str) -> WholeMessage:
    return fold(events_of(stream, texts))


def calls_in(message: WholeMessage) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.tool_calls]
