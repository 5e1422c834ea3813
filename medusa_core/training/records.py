"""Training data and prompts: JSON lines of conversations or plain text, read one line at a time.

What is wrong with a line is said with the file, the line's number and what was expected there.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from medusa_core.errors import ConfigurationError

__all__ = ["Message", "Record", "read_records"]

ROLES = ("system", "user", "assistant", "tool", "developer")

# ShareGPT and its descendants name the speakers after people and products.
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "observation": "tool",
    **{role: role for role in ROLES},
}

KINDS = ("messages", "conversations", "text")

# What a chat template may read of a message besides role and content.
TEMPLATE_FIELDS = ("name", "reasoning_content", "tool_call_id", "tool_calls")

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    fields: what else the chat template is shown of it: tool calls, reasoning, names.
    """

    role: str
    content: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """The message as a chat template reads it."""
        return {"role": self.role, "content": self.content, **self.fields}


@dataclass(frozen=True)
class Record:
    """One line of a data file: a conversation or a text.

    line:        its number in the file, from 1.
    is_cut:      the last answer, or the text, stops in the middle; no end of turn may follow it.
    is_verbatim: the answers are what a model wrote behind its generation prompt, character by character.
    tools:       what the model could call, in OpenAI's shape.
    """

    line: int
    messages: tuple[Message, ...]
    text: str | None
    is_cut: bool
    is_verbatim: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()


def read_records(path: Path) -> Iterator[Record]:
    """Records one by one, in file order; ConfigurationError names the line and what is wrong with it.

    A line holds `{"messages": [{"role": ..., "content": ...}, ...]}`, ShareGPT's
    `{"conversations": [{"from": ..., "value": ...}, ...]}` or `{"text": ...}`, with an optional `"finish_reason"` as
    `medusa distill` writes it: `length` says that the last answer was cut off. Other fields are left alone, blank
    lines skipped. A name that ends in .gz is unpacked on the way.
    """
    found = False
    try:
        with _open(path) as lines:
            for number, raw in enumerate(lines, start=1):
                line = _decoded(raw, number, path).strip()
                if not line:
                    continue
                if not found and line.startswith("["):
                    raise ConfigurationError(
                        f"{path}, line {number}: the file holds a JSON array; expected one JSON object per line "
                        "(jq -c '.[]' turns the one into the other)"
                    )
                found = True
                yield _record(line, number, path)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror is not None else error
        raise ConfigurationError(f"cannot read {path}: {reason}") from error
    if not found:
        raise ConfigurationError(f"{path} is empty; expected one JSON object per line")


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _decoded(raw: bytes, number: int, path: Path) -> str:
    try:
        return raw.removeprefix(BYTE_ORDER_MARK if number == 1 else b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}, line {number}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8"
        ) from error


def _record(line: str, number: int, path: Path) -> Record:
    where = f"{path}, line {number}"
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{where}: not JSON: {error}; expected one JSON object per line") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{where}: expected an object, got {type(content).__name__}")
    kinds = [kind for kind in KINDS if kind in content]
    if len(kinds) != 1:
        found = f"found {' and '.join(kinds)}" if kinds else f"found {', '.join(map(repr, content)) or 'nothing'}"
        raise ConfigurationError(f"{where}: expected one of 'messages', 'conversations' and 'text', {found[:200]}")
    is_cut = content.get("finish_reason") == "length"
    if kinds == ["text"]:
        text = content["text"]
        if not isinstance(text, str) or not text:
            raise ConfigurationError(f"{where}: 'text' must be a non-empty string")
        return Record(number, (), _unicode(text, where), is_cut)
    items = content[kinds[0]]
    if not isinstance(items, list) or not items:
        raise ConfigurationError(f"{where}: {kinds[0]!r} must be a non-empty list")
    turns = tuple(
        _message(item, f"{where}, message {index}", kinds[0] == "conversations") for index, item in enumerate(items)
    )
    is_verbatim = content.get("finish_reason") in ("stop", "length")
    return Record(number, turns, None, is_cut, is_verbatim, _tools(content.get("tools"), where))


def _tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ConfigurationError(f"{where}: 'tools' must be a list of objects")
    return tuple(value)


def _message(item: Any, where: str, is_sharegpt: bool) -> Message:
    """One turn, in OpenAI's words or, where `is_sharegpt`, in ShareGPT's or OpenAI's."""
    if not isinstance(item, dict):
        raise ConfigurationError(f"{where}: expected an object, got {type(item).__name__}")
    speaks = "from" if is_sharegpt and "role" not in item else "role"
    says = "value" if speaks == "from" else "content"
    known = SPEAKERS if speaks == "from" else {role: role for role in ROLES}
    name = item.get(speaks)
    if not isinstance(name, str) or name not in known:
        raise ConfigurationError(f"{where}: {speaks} {name!r} is not one of {', '.join(known)}")
    role = known[name]
    if item.get("function_call") is not None:
        raise ConfigurationError(f"{where}: 'function_call' is not supported; write it as 'tool_calls'")
    fields = {key: item[key] for key in TEMPLATE_FIELDS if item.get(key) is not None}
    if "tool_calls" in fields:
        fields["tool_calls"] = _calls(fields["tool_calls"], role, where)
    content = item.get(says)
    if content is None and "tool_calls" in fields:
        content = ""
    text = _unicode(_joined(content, says, where), where)
    # Others may have nothing to say: a command without output, a model that ends its turn at once.
    if role == "user" and not text:
        raise ConfigurationError(f"{where}: {says!r} of a user's turn is empty")
    return Message(role, text, fields)


def _calls(value: Any, role: str, where: str) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects, which is how templates read them."""
    if role != "assistant" or not isinstance(value, list):
        raise ConfigurationError(f"{where}: 'tool_calls' must be a list, in a turn of the assistant")
    calls: list[dict[str, Any]] = []
    for call in value:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ConfigurationError(f"{where}: each of 'tool_calls' needs a 'function' with a 'name'")
        arguments = function.get("arguments", {})
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError as error:
            raise ConfigurationError(f"{where}: the arguments of {function['name']!r} are not JSON") from error
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return calls


def _joined(content: Any, field_name: str, where: str) -> str:
    """A string, or the text of a list of text parts, joined as the server joins them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ConfigurationError(f"{where}: {field_name!r} must be a string or a list of text parts")
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ConfigurationError(f"{where}: a content part of type {kind!r}; only text can be learnt from")
        texts.append(part["text"])
    return "".join(texts)


def _unicode(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{where}: half a character (a lone surrogate); write it whole") from error
    return text
