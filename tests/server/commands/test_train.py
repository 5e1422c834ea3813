import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import create_cli
from tests.medusa_core.training.cast import saved_base
from tests.server.commands.refusals import refusal


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--data", "x", "--recipe", "medusa3"], "--recipe medusa3 is not known; it must be medusa1 or medusa2"),
        (["--data", "x", "--lm-heads", "none"], "--lm-heads none"),
        (["--data", "x", "--rank", "8"], "--lm-heads low-rank"),
        (["--data", "x", "--merge", "--ramp"], "--merge, --ramp belong to --recipe medusa2"),
        (["--data", __file__, "--patience", "2"], "evaluate_every"),
        (["--data", __file__, "--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_a_wrong_start_is_one_clear_line(tmp_path: Path, words: list[str], named: str) -> None:
    assert named in refusal("train", "--out", str(tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["medusa1", "medusa2"])
def test_heads_are_trained_measured_and_told_how_to_serve(tmp_path: Path, recipe: str) -> None:
    model = saved_base(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    texts = [f"def dedent{n}(text):\n    return text.strip({n})\n" for n in range(40)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["train", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "out"), "--recipe", recipe]
    words += ["--heads", "2", "--max-length", "64", "--held-out", "30", "--device", "cpu", "--lm-heads", "own"]
    words += ["--max-perplexity-percent", "50", "--adapter-rank", "2"] if recipe == "medusa2" else []

    ended = CliRunner().invoke(create_cli(), words, env={"COLUMNS": "200"})

    assert ended.exit_code == 0, ended.output
    assert "On held-out text" in ended.stdout
    assert "On this machine: " in ended.stderr
    assert "too few to learn much" in ended.stderr
    assert f"medusa serve --model {model} --heads {tmp_path / 'out'}" in ended.stderr
    assert ("perplexity" in ended.stderr) == (recipe == "medusa2")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["recipe"] == recipe
    assert report["speed"]["tokens_per_step"]["1"] == 1.0
    found = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"loss_heads.png", "accuracy.png", "tree.png", "speed.png", "latency.png", "calibration.json"} <= found
    assert ("adapter" in found) == ("loss_joint.png" in found) == (recipe == "medusa2")
    assert "run" not in found
