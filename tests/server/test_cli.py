import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import create_cli
from server.settings import Settings

ROOT = Path(__file__).parents[2]


def medusa(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from server.cli import main; main()", *words]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_names_every_command_and_loads_no_model_library() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from server.cli import create_cli\n"
        "print(CliRunner().invoke(create_cli(), ['--help']).output)\n"
        "print({'torch', 'transformers', 'fastapi', 'uvicorn'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert shown.endswith("set()\n")
    assert all(command in shown for command in ("serve", "generate", "distill", "train"))


def test_every_option_of_the_server_is_shown_with_its_variable() -> None:
    shown = CliRunner().invoke(create_cli(), ["serve", "--help"], terminal_width=300, env={"COLUMNS": "300"}).output

    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown
        assert f"MEDUSA_{name.upper()}" in shown


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(create_cli(), ["--version"]).output.startswith("medusa ")


def test_a_wrong_model_path_is_one_clear_line() -> None:
    ended = medusa("serve", "--model", "/nowhere/at/all", "--port", "0", HF_HUB_OFFLINE="1")

    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "/nowhere/at/all" in line


@pytest.mark.parametrize(
    ("words", "variables", "named"),
    [
        (["serve", "--port", "99999"], {}, "--port"),
        (["serve", "--quantize", "int8"], {}, "--quantize int8"),
        (["serve"], {"MEDUSA_PROT": "1"}, "did you mean MEDUSA_PORT"),
        (["generate", "hi", "--model", "/nowhere/at/all"], {}, "/nowhere/at/all"),
        (["generate", "hi", "--mode", "psychic"], {}, "--mode"),
        (["train", "--data", "/nowhere.jsonl", "--out", "x"], {}, "/nowhere.jsonl"),
        (["train", "--data", "x", "--out", "x", "--recipe", "medusa3"], {}, "--recipe medusa3"),
        (["distill", "--prompts", "/nowhere.jsonl", "--out", "x"], {}, "/nowhere.jsonl"),
    ],
)
def test_a_wrong_start_is_one_clear_line(words: list[str], variables: dict[str, str], named: str) -> None:
    ended = CliRunner().invoke(create_cli(), words, env=variables)

    assert ended.exit_code in (1, 2)
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line


def test_an_unknown_option_is_refused_by_name() -> None:
    ended = CliRunner().invoke(create_cli(), ["serve", "--prot", "1"])

    assert ended.exit_code == 2
    assert "--prot" in ended.stderr
    assert "--port" in ended.stderr


def test_no_module_of_the_server_loads_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, server\n"
        "for module in pkgutil.walk_packages(server.__path__, 'server.'): importlib.import_module(module.name)\n"
        "print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert shown == "False\n"
