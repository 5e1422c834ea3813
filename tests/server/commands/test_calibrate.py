from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import create_cli
from tests.medusa_core.evaluation.cast import saved_model, saved_prompts
from tests.server.commands.refusals import refusal


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data", "/nowhere.jsonl"], "--data: the file '/nowhere.jsonl'"),
        (["--model", "some/model"], "--data is missing"),
        (["--nodes", "4,8"], "1, plain decoding, must be among them"),
        (["--model", "/nowhere/at/all", "--data", "README.md"], "/nowhere/at/all"),
    ],
)
def test_a_wrong_option_is_one_clear_line(words: list[str], named: str) -> None:
    assert named in refusal("calibrate", *words)


def test_what_was_measured_is_shown_and_where_it_went(tmp_path: Path) -> None:
    folder, data = saved_model(tmp_path / "model", calibration=None), saved_prompts(tmp_path)
    words = ["--model", str(folder), "--data", str(data), "--nodes", "1,4", "--max-tokens", "12"]

    ended = CliRunner().invoke(create_cli(), ["calibrate", *words, "--context", "32"], env={"COLUMNS": "200"})

    assert ended.exit_code == 0, ended.stderr
    assert all(words in ended.stdout for words in ("first 5", "tokens per step", "overhead", "calibration.json"))
    assert (folder / "heads" / "calibration.json").is_file()
