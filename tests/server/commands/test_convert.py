from pathlib import Path

from typer.testing import CliRunner

from medusa_core.checkpoints.layouts import LAYOUTS as TABLE
from server.cli import create_cli
from server.commands.convert import LAYOUTS
from tests.server.commands.refusals import refusal


def test_the_help_names_every_layout() -> None:
    assert LAYOUTS == ", ".join(TABLE)


def test_converted_heads_are_a_folder_with_a_card(tmp_path: Path) -> None:
    ended = CliRunner().invoke(create_cli(), ["convert", "demo", str(tmp_path / "out"), "--layout", "vllm"])

    assert (ended.exit_code, ended.stdout) == (0, "")
    assert "layout vllm" in ended.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "README.md", "calibration.json", "config.json", "model.safetensors",
    }  # fmt: skip


def test_an_unknown_layout_is_answered_with_those_there_are(tmp_path: Path) -> None:
    assert LAYOUTS in refusal("convert", "demo", str(tmp_path / "out"), "--layout", "gguf")


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    assert str(tmp_path) in refusal("convert", "demo", str(tmp_path), "--layout", "vllm")
