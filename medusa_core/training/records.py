"""Training data: JSON lines of conversations or plain text, one record at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medusa_core.errors import ConfigurationError

__all__ = ["Message", "Record", "read_records"]

ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One line of a data file: a conversation or a text.

    line:       its number in the file, from 1.
    is_cut:     the last answer, or the text, stops in the middle; no end of turn may follow it.
    """

    line: int
    messages: tuple[Message, ...]
    text: str | None
    is_cut: bool


def read_records(path: Path) -> Iterator[Record]:
    """Records one by one, in file order; ConfigurationError names the line and what is wrong with it.

    A line is `{"messages": [{"role": ..., "content": ...}, ...]}` or `{"text": ...}`, with an optional
    `"finish_reason"`: `length` says that the last answer was cut off. Other fields are left alone.
    """
    try:
        lines = path.open(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    with lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _record(line, number, path)


def _record(line: str, number: int, path: Path) -> Record:
    where = f"{path}, line {number}"
    try:
        content = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{where}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{where}: expected an object, got {type(content).__name__}")
    is_cut = content.get("finish_reason") == "length"
    if ("messages" in content) == ("text" in content):
        raise ConfigurationError(f"{where}: expected either 'messages' or 'text'")
    if "text" in content:
        if not isinstance(content["text"], str) or not content["text"]:
            raise ConfigurationError(f"{where}: 'text' must be a non-empty string")
        return Record(number, (), content["text"], is_cut)
    messages = content["messages"]
    if not isinstance(messages, list) or not messages:
        raise ConfigurationError(f"{where}: 'messages' must be a non-empty list")
    turns = tuple(_message(item, f"{where}, message {index}") for index, item in enumerate(messages))
    return Record(number, turns, None, is_cut)


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise ConfigurationError(f"{where}: expected an object, got {type(item).__name__}")
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise ConfigurationError(f"{where}: role {role!r} is not one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ConfigurationError(f"{where}: 'content' must be a string")
    return Message(role, content)
