from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import create_cli
from tests.medusa_core.evaluation.cast import saved_model, saved_prompts
from tests.server.commands.refusals import refusal


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--prompts", "/nowhere.jsonl"], "--prompts: the file '/nowhere.jsonl'"),
        (["--model", "some/model"], "--prompts is missing"),
        (["--tree", "tall"], "tree is 'tall', it must be dynamic or static"),
    ],
)
def test_a_wrong_option_is_one_clear_line(words: list[str], named: str) -> None:
    assert named in refusal("verify", *words)


def test_agreement_is_told_with_what_the_trees_brought(tmp_path: Path) -> None:
    folder, prompts = saved_model(tmp_path / "model"), saved_prompts(tmp_path)
    words = ["--model", str(folder), "--prompts", str(prompts), "--max-tokens", "8", "--tree", "static"]

    ended = CliRunner().invoke(create_cli(), ["verify", *words])

    assert ended.exit_code == 0, ended.stderr
    assert "6 of 6 answers" in ended.stdout
    assert "tokens per step (bonus included)" in ended.stdout


def test_a_broken_line_of_the_prompts_is_named(tmp_path: Path) -> None:
    folder, prompts = saved_model(tmp_path / "model"), tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "a"}\n{"prompt": "b"}\n')

    assert "prompts.jsonl, line 2: expected" in refusal("verify", "--model", str(folder), "--prompts", str(prompts))
