import json
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
        (["--nodes", "few"], "--nodes is 'few'"),
        (["--nodes", "1"], "trees have 2 nodes at least"),
        (["--generate", "--temperature", "1"], "greedily"),
    ],
)
def test_a_wrong_option_is_one_clear_line(words: list[str], named: str) -> None:
    assert named in refusal("bench", *words)


def test_the_peers_are_shown_as_a_table_and_written_with_pictures(tmp_path: Path) -> None:
    folder, prompts, out = saved_model(tmp_path / "model"), saved_prompts(tmp_path), tmp_path / "out"
    words = ["--model", str(folder), "--prompts", str(prompts), "--out", str(out), "--nodes", "4", "--max-tokens", "6"]

    ended = CliRunner().invoke(
        create_cli(), ["bench", *words, "--repeats", "1", "--timed", "1"], env={"COLUMNS": "200"}
    )

    assert ended.exit_code == 0, ended.stderr
    assert all(name in ended.stdout for name in ("plain", "static N=4", "dynamic N=4", "bonus included"))
    assert {"counting tokens per step", "timing answers"} <= set(ended.stderr.splitlines())
    assert len(json.loads((out / "bench.json").read_text())["peers"]) == 3
    assert (out / "speed.png").is_file()
