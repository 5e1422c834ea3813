import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import create_cli
from server.settings import Settings
from tests.server.commands.refusals import refusal

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
def test_a_wrong_start_is_one_clear_line(words: list[str], variables: dict[str, str], named: str) -> None:
    assert named in refusal("serve", *words, **variables)
