import json
from pathlib import Path

import pytest

from medusa_core.errors import ConfigurationError
from medusa_core.evaluation.prompts import Prompt, default_prompts, fitting, of_each_kind, read_prompts
from medusa_core.text import TextCodec
from tests.medusa_core.evaluation.cast import PROMPTS, saved_prompts
from tests.tiny_tokenizers import save_byte_level


@pytest.fixture
def codec(tmp_path: Path) -> TextCodec:
    return TextCodec.load(str(save_byte_level(tmp_path / "model")))


def test_the_answer_of_a_conversation_is_left_to_the_model(codec: TextCodec, tmp_path: Path) -> None:
    with_answer, without, text = read_prompts(saved_prompts(tmp_path), codec)

    assert with_answer.tokens == without.tokens
    assert codec.decode(without.tokens, skip_special_tokens=False).endswith("<|start|>assistant\n")
    assert (with_answer.line, without.line, text.line) == (1, 2, 3)
    assert (without.kind, text.kind) == ("chat", "text")
    assert codec.decode(text.tokens) == "def dedent(text):"


def test_empty_lines_count_as_lines_and_other_separators_do_not(codec: TextCodec, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('\n{"text": "a\u2028b"}\n', encoding="utf-8-sig")

    (prompt,) = read_prompts(path, codec)

    assert (prompt.line, codec.decode(prompt.tokens)) == (2, "a\u2028b")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected an object with either 'messages' or 'text'"),
        ('{"text": "a", "messages": []}', "line 2: expected an object with either"),
        ('{"text": ""}', "line 2: 'text' must be a non-empty string"),
        ('{"messages": "hi"}', "line 2: 'messages' must be a list"),
        ('{"messages": []}', "line 2: 'messages' holds no question"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "line 2: 'messages' holds no question"),
        ('{"messages": [{"role": "user"}]}', "line 2, message 0: 'content' must be a string"),
        ('{"messages": [3]}', "line 2, message 0: expected an object with 'role'"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(codec: TextCodec, tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "a"}\n' + line, encoding="utf-8")

    with pytest.raises(ConfigurationError, match=f"prompts.jsonl, {complaint}"):
        read_prompts(path, codec)


def test_a_file_without_prompts_or_without_text_is_refused(codec: TextCodec, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\xff")

    for name, complaint in (("empty", "holds no prompts"), ("binary", "not UTF-8"), ("nowhere", "cannot read")):
        with pytest.raises(ConfigurationError, match=complaint):
            read_prompts(tmp_path / f"{name}.jsonl", codec)


def test_a_conversation_needs_a_chat_template(tmp_path: Path) -> None:
    codec = TextCodec.load(str(save_byte_level(tmp_path / "model", chat_template=None)))

    with pytest.raises(ConfigurationError, match=r"line 1: .*no chat template"):
        read_prompts(saved_prompts(tmp_path), codec)


def test_only_the_demo_model_brings_prompts_of_its_own() -> None:
    assert len([json.loads(line) for line in default_prompts("demo", "--prompts").read_text().splitlines()]) == 60
    with pytest.raises(ConfigurationError, match="--prompts is missing"):
        default_prompts("other", "--prompts")


def test_prompts_without_room_for_an_answer_are_left_out() -> None:
    assert [prompt.line for prompt in fitting(PROMPTS, 14, 10)] == [2, 4]
    with pytest.raises(ConfigurationError, match="no prompt leaves room for 10 tokens in a context of 12"):
        fitting(PROMPTS, 12, 10)


def test_the_first_of_each_kind_are_chosen() -> None:
    assert of_each_kind(PROMPTS, 1) == PROMPTS[:2]
    assert of_each_kind([Prompt(1, "text", (1,))], 5) == [Prompt(1, "text", (1,))]
