import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import create_cli
from server.commands.serve import PANELS
from server.settings import Settings

ROOT = Path(__file__).parents[3]


def medusa(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from server.cli import main; main()", *words]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


def test_every_option_of_the_server_is_shown_with_its_variable() -> None:
    shown = CliRunner().invoke(create_cli(), ["serve", "--help"], terminal_width=300, env={"COLUMNS": "300"}).output

    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown
        assert f"MEDUSA_{name.upper()}" in shown


def test_the_help_lists_each_setting_under_one_heading() -> None:
    grouped = [name for names in PANELS.values() for name in names]

    assert sorted(grouped) == sorted(name for name in Settings.model_fields if name != "config")


def test_settings_are_shown_with_their_origins_and_keys_in_stars(tmp_path: Path) -> None:
    file = tmp_path / "medusa.yaml"
    file.write_text("queue_size: 3\nport: 1\n")
    words = ["serve", "--config", str(file), "--show-settings", "--port", "7", "--api-key", "sesame,second"]
    shown = CliRunner().invoke(create_cli(), words, env={"MEDUSA_HOST": "::1"}).stdout
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}

    assert rows.keys() == Settings.model_fields.keys()
    assert rows["port"] == ["7", "command", "line"]
    assert rows["host"] == ["::1", "variable"]
    assert rows["queue_size"] == ["3", "file"]
    assert rows["heads"] == ["-", "default"]
    assert rows["api_key"][0] == "**********,**********"
    assert "sesame" not in shown


def test_a_wrong_model_path_is_one_clear_line() -> None:
    ended = medusa("serve", "--model", "/nowhere/at/all", "--port", "0", HF_HUB_OFFLINE="1")

    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "/nowhere/at/all" in line


@pytest.mark.parametrize(
    ("words", "variables", "named"),
    [
        (["--port", "99999"], {}, "--port"),
        (["--quantize", "int3"], {}, "--quantize"),
        ([], {"MEDUSA_PROT": "1"}, "did you mean MEDUSA_PORT"),
    ],
)
def test_a_wrong_start_is_one_clear_line(
    words: list[str], variables: dict[str, str], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = CliRunner().invoke(create_cli(), ["serve", *words], env=variables)

    # the server writes to the descriptor itself, whatever stands in sys.stderr
    (line,) = capfd.readouterr().err.splitlines()
    assert ended.exit_code == 2
    assert line.startswith("error: ") and named in line
