from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import create_cli
from tests.server.commands.refusals import refusal


def test_a_prompt_file_that_is_not_there_is_named() -> None:
    assert "/nowhere.jsonl" in refusal("distill", "--prompts", "/nowhere.jsonl", "--out", "x")


@pytest.mark.parametrize(
    ("prompts", "options", "complaint"),
    [
        ("", [], "in.jsonl is empty; expected one JSON object per line"),
        ('{"text": "a"}\n{', [], "in.jsonl, line 2: not JSON"),
        ('{"text": "a"}', ["--turns", "first"], "turns is 'first', it must be all or last"),
        ('{"text": "a"}', ["--out", "/nowhere/out.jsonl"], "cannot write /nowhere/out.jsonl: No such file"),
        ('{"text": "a"}', ["--chat-template", "/nowhere.jinja"], "/nowhere.jinja"),
        ('{"text": "a"}', ["--model", "/nowhere"], "there is no '/nowhere'"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', [], "line 1: there is nothing to answer"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(
    tmp_path: Path, prompts: str, options: list[str], complaint: str
) -> None:
    (tmp_path / "in.jsonl").write_text(prompts)
    out = [] if "--out" in options else ["--out", str(tmp_path / "out.jsonl")]

    assert complaint in refusal("distill", "--prompts", str(tmp_path / "in.jsonl"), *out, *options)


def test_what_was_done_is_told(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "def f("}\n{"text": "' + "a = 1 " * 3000 + '"}')
    words = ["--prompts", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--max-tokens", "2"]

    for new in (1, 0):
        ended = CliRunner().invoke(create_cli(), ["distill", *words])

        assert ended.exit_code == 0
        assert f"1 answers in {tmp_path / 'out.jsonl'}, {new} of them new" in ended.stderr
        assert "1 prompts skipped" in ended.stderr
        # one bar, not those of the libraries too
        assert "Loading weights" not in ended.stderr
