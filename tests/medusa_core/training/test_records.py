from pathlib import Path

import pytest

from medusa_core.errors import ConfigurationError
from medusa_core.training.records import Record, read_records


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object, got list"),
        ("{}", "either 'messages' or 'text'"),
        ('{"text": "a", "messages": []}', "either 'messages' or 'text'"),
        ('{"text": ""}', "non-empty string"),
        ('{"messages": []}', "non-empty list"),
        ('{"messages": [3]}', "message 0: expected an object"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "role 'bot' is not one of"),
        ('{"messages": [{"role": "user", "content": null}]}', "'content' must be a string"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")

    with pytest.raises(ConfigurationError, match=f"line 3.*{complaint}"):
        list(read_records(path))


def test_records_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n{')

    assert next(read_records(path)) == Record(1, (), "fine", is_cut=False)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        list(read_records(tmp_path / "data.jsonl"))
