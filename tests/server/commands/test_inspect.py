import json
from pathlib import Path

from typer.testing import CliRunner

from medusa_core.checkpoints import save_heads
from server.cli import create_cli
from tests.cast import random_heads
from tests.medusa_core.checkpoints.public import LM_HEAD, layout_a
from tests.server.commands.refusals import refusal


def said(*words: str) -> str:
    ended = CliRunner().invoke(create_cli(), ["inspect", *words])
    assert ended.exit_code == 0
    return ended.stdout


def test_the_demos_heads_are_described_with_how_good_they_are() -> None:
    table = said("demo")

    assert "one for each head" in table
    assert "t + 5" in table and "%" in table
    assert "as the file" in table


def test_false_claims_and_a_missing_calibration_are_said(tmp_path: Path) -> None:
    layout_a(tmp_path)
    table = said(str(tmp_path))

    assert "falsely claims 2 heads" in table
    assert "medusa calibrate" in table


def test_a_path_is_shown_as_it_is_spelt(tmp_path: Path) -> None:
    (tmp_path / "[red]").mkdir()
    layout_a(tmp_path / "[red]")

    shown = "".join(said(str(tmp_path / "[red]")).split())  # a narrow table folds it

    assert "[red]/medusa_lm_head.pt" in shown


def test_a_config_from_the_hub_cannot_command_the_terminal(tmp_path: Path) -> None:
    save_heads(tmp_path, random_heads(LM_HEAD, 2), "some/\x1b[2Jbase")

    shown = said(str(tmp_path))

    assert "some/\ufffd[2Jbase" in shown and "\x1b" not in shown


def test_shared_lm_heads_have_no_vocabulary_of_their_own(tmp_path: Path) -> None:
    save_heads(tmp_path, random_heads(LM_HEAD, 2), "some/base")

    assert said(str(tmp_path)).count("the base model's") == 2


def test_a_program_gets_one_json_object() -> None:
    report = json.loads(said("demo", "--json"))

    assert (report["num_heads"], report["lm_head"], report["base_model"]) == (4, "own", "demo")
    assert len(report["accuracies"]) == 4


def test_a_folder_that_is_not_there_is_one_line() -> None:
    assert "'/nowhere'" in refusal("inspect", "/nowhere")
