"""Prompts to measure with: JSON lines of conversations or of texts to continue, as token ids."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medusa_core.errors import ConfigurationError, RequestError
from medusa_core.text import TextCodec

__all__ = ["Prompt", "default_prompts", "fitting", "of_each_kind", "read_prompts"]


@dataclass(frozen=True)
class Prompt:
    """What one answer begins with; `line` is its number in the file, from 1."""

    line: int
    kind: Literal["chat", "text"]
    tokens: tuple[int, ...]


def default_prompts(model: str, option: str) -> Path:
    """The demo model's held-out prompts; raises ConfigurationError naming the option for any other model."""
    if model != "demo":
        raise ConfigurationError(f"{option} is missing: JSON lines with `messages` or `text`; only demo brings its own")
    return Path(__file__).parent.parent / "demo" / "held_out.jsonl"


def read_prompts(path: Path, codec: TextCodec) -> list[Prompt]:
    """Every prompt of a file; ConfigurationError names the line and what is wrong with it.

    `{"messages": [...]}` is a conversation, whose last answer is left to the model if it stands there;
    `{"text": "..."}` is continued as it stands. Other fields are left alone.
    """
    try:
        # other separators of lines may stand inside a JSON string
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"cannot read {path}: {reason}") from error
    prompts = [
        _prompt(line, number, f"{path}, line {number}", codec)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise ConfigurationError(f"{path} holds no prompts; give one JSON object per line, with `messages` or `text`")
    return prompts


def _prompt(line: str, number: int, where: str, codec: TextCodec) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict) or ("messages" in entry) == ("text" in entry):
        raise ConfigurationError(f"{where}: expected an object with either 'messages' or 'text'")
    if "text" in entry:
        if not isinstance(entry["text"], str) or not entry["text"]:
            raise ConfigurationError(f"{where}: 'text' must be a non-empty string")
        return Prompt(number, "text", tuple(codec.encode(entry["text"])))
    messages = _messages(entry["messages"], where)
    try:
        return Prompt(number, "chat", tuple(codec.encode_chat(messages)))
    except RequestError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _messages(found: Any, where: str) -> list[dict[str, Any]]:
    """The turns before the answer that is to be written."""
    if not isinstance(found, list):
        raise ConfigurationError(f"{where}: 'messages' must be a list")
    for index, message in enumerate(found):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ConfigurationError(f"{where}, message {index}: expected an object with 'role' and 'content'")
        if not isinstance(message.get("content"), str):
            raise ConfigurationError(f"{where}, message {index}: 'content' must be a string")
    turns = found[:-1] if found and found[-1]["role"] == "assistant" else found
    if not turns:
        raise ConfigurationError(f"{where}: 'messages' holds no question to answer")
    return turns


def fitting(prompts: Sequence[Prompt], max_context: int, max_tokens: int) -> list[Prompt]:
    """The prompts that leave room for a whole answer; raises ConfigurationError when none does."""
    chosen = [prompt for prompt in prompts if len(prompt.tokens) + max_tokens <= max_context]
    if not chosen:
        shortest = min(len(prompt.tokens) for prompt in prompts)
        raise ConfigurationError(
            f"no prompt leaves room for {max_tokens} tokens in a context of {max_context}, the shortest has "
            f"{shortest}; give shorter prompts, or lower the tokens of an answer"
        )
    return chosen


def of_each_kind(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first so many conversations and the first so many texts, in the order of their kinds."""
    kinds = dict.fromkeys(prompt.kind for prompt in prompts)
    return [one for kind in kinds for one in [prompt for prompt in prompts if prompt.kind == kind][:count]]
