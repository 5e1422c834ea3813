import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from medusa_core.errors import ConfigurationError
from medusa_core.training.records import Message, Record, read_records

CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def written(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


def only(folder: Path, content: dict[str, Any]) -> Record:
    (record,) = read_records(written(folder, json.dumps(content)))
    return record


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON.*one JSON object per line"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected an object, got list"),
        ("{}", "one of 'messages', 'conversations' and 'text', found nothing"),
        ('{"prompt": "a"}', "one of 'messages', 'conversations' and 'text', found 'prompt'"),
        ('{"text": "a", "messages": []}', "found messages and text"),
        ('{"text": ""}', "'text' must be a non-empty string"),
        ('{"text": "\\ud800"}', "half a character"),
        ('{"messages": []}', "'messages' must be a non-empty list"),
        ('{"conversations": {}}', "'conversations' must be a non-empty list"),
        ('{"messages": [3]}', "message 0: expected an object"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "role 'bot' is not one of system, user, assistant"),
        ('{"messages": [{"role": ["user"], "content": "a"}]}', r"role \['user'\] is not one of"),
        ('{"messages": [{"from": "human", "value": "a"}]}', "role None is not one of"),
        ('{"conversations": [{"from": "alien", "value": "a"}]}', "from 'alien' is not one of human, gpt"),
        ('{"conversations": [{"from": "human"}]}', "'value' must be a string"),
        ('{"messages": [{"role": "user"}]}', "'content' must be a string"),
        ('{"messages": [{"role": "user", "content": ""}]}', "'content' of a user's turn is empty"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "part of type 'image_url'"),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "part of type None"),
        ('{"messages": [{"role": "assistant", "function_call": {}}]}', "'function_call' is not supported"),
        ('{"messages": [{"role": "user", "content": "a", "tool_calls": []}]}', "a turn of the assistant"),
        ('{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', "needs a 'function' with a 'name'"),
        (
            '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}',
            "arguments of 'f' are not JSON",
        ),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": [1]}', "'tools' must be a list of objects"),
        (b'{"text": "Gr\xfc\xdfe"}', "byte 13 of the line is not UTF-8"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path: Path, line: str | bytes, complaint: str) -> None:
    path = written(tmp_path, '{"text": "fine"}', "", line)

    with pytest.raises(ConfigurationError, match=f"data.jsonl, line 3.*{complaint}"):
        list(read_records(path))


def test_records_are_streamed(tmp_path: Path) -> None:
    path = written(tmp_path, '{"text": "fine"}', "{")

    assert next(read_records(path)) == Record(1, (), "fine", is_cut=False)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        list(read_records(tmp_path / "data.jsonl"))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"data\.jsonl is empty"):
        list(read_records(tmp_path / "data.jsonl"))


@pytest.mark.parametrize("content", ['[{"text": "a"}]', '[\n{"text": "a"}\n]'])
def test_one_array_is_told_from_one_object_per_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigurationError, match="holds a JSON array; expected one JSON object per line"):
        list(read_records(written(tmp_path, content)))


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (record,) = read_records(written(tmp_path, b'\xef\xbb\xbf{"text": "a"}'))

    assert record.text == "a"


def test_a_packed_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\r\n{"text": "b"}'))

    assert [(record.line, record.text) for record in read_records(path)] == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("damage", [slice(0, 25), slice(5, None)])
def test_a_damaged_packed_file_is_named(tmp_path: Path, damage: slice) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}')[damage])

    with pytest.raises(ConfigurationError, match=r"cannot read .*data\.jsonl\.gz"):
        list(read_records(path))


def test_sharegpt_speakers_take_their_roles(tmp_path: Path) -> None:
    turns = [("system", "s"), ("human", "h"), ("gpt", "g"), ("user", "u"), ("assistant", "a"), ("tool", "t")]
    record = only(tmp_path, {"id": "x", "conversations": [{"from": who, "value": what} for who, what in turns]})

    assert [message.role for message in record.messages] == ["system", "user", "assistant", "user", "assistant", "tool"]
    assert [message.content for message in record.messages] == [what for _, what in turns]


def test_text_parts_are_joined_as_they_are(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert only(tmp_path, {"messages": [{"role": "user", "content": parts}]}).messages == (Message("user", "ab"),)


def test_tool_calls_reach_the_template_with_their_arguments_as_objects(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    record = only(tmp_path, {"messages": turns, "tools": [{"type": "function"}]})

    shown = record.messages[1].shown()
    assert shown["content"] == ""
    assert shown["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert record.tools == ({"type": "function"},)


@pytest.mark.parametrize(
    ("reason", "is_cut", "is_verbatim"),
    [("length", True, True), ("stop", False, True), (None, False, False), ("tool_calls", False, False)],
)
def test_the_finish_reason_says_how_the_last_answer_ended(
    tmp_path: Path, reason: str | None, is_cut: bool, is_verbatim: bool
) -> None:
    record = only(tmp_path, {"messages": [{"role": "user", "content": "a"}], "finish_reason": reason})

    assert (record.is_cut, record.is_verbatim) == (is_cut, is_verbatim)
