import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from server.cli import COMMANDS, EXAMPLES, create_cli

ROOT = Path(__file__).parents[2]


def test_help_names_every_command_and_loads_no_model_library() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from server.cli import COMMANDS, create_cli\n"
        "print(CliRunner().invoke(create_cli(), ['--help']).output)\n"
        "print({'torch', 'transformers', 'fastapi', 'uvicorn'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert shown.endswith("set()\n")
    assert all(command.__name__ in shown for command in COMMANDS)


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(create_cli(), ["--version"]).output.startswith("medusa ")


def test_an_unknown_option_is_refused_by_name() -> None:
    ended = CliRunner().invoke(create_cli(), ["serve", "--prot", "1"])

    assert ended.exit_code == 2
    assert "--prot" in ended.stderr
    assert "--port" in ended.stderr


def test_a_command_keeps_quiet_what_torchao_remarks_about_itself() -> None:
    code = (
        "import logging; from typer.testing import CliRunner; from server.cli import create_cli\n"
        "CliRunner().invoke(create_cli(), ['convert', 'nowhere', 'here', '--layout', 'none'])\n"
        "for name in ('torchao.ops', 'torch.utils._pytree', 'medusa_core'): logging.getLogger(name).warning(name)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stderr

    assert said.split() == ["medusa_core"]


def test_no_module_of_the_server_loads_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, server\n"
        "for module in pkgutil.walk_packages(server.__path__, 'server.'): importlib.import_module(module.name)\n"
        "print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert shown == "False\n"


def test_what_the_terminal_has_no_letter_for_is_shown_as_a_question_mark() -> None:
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--show-settings"]
    ended = subprocess.run(
        [*command, "--served-model-name", "ü"], cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert re.search(r"served_model_name +\? ", ended.stdout)


def test_a_traceback_is_shown_to_who_asks_for_it_alone() -> None:
    words = ["convert", "nowhere", "here", "--layout", "none"]
    plain, debugged = (CliRunner().invoke(create_cli(), [*more, *words]).stderr for more in ([], ["--debug"]))

    assert "Traceback" not in plain
    assert "Traceback" in debugged
    assert debugged.endswith(plain)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_may_complete_commands_and_options(shell: str) -> None:
    shown = CliRunner().invoke(create_cli(), [], prog_name="medusa", env={"_MEDUSA_COMPLETE": f"source_{shell}"})
    asked = {"_MEDUSA_COMPLETE": "complete_bash", "COMP_WORDS": "medusa ch", "COMP_CWORD": "1"}
    completed = CliRunner().invoke(create_cli(), [], prog_name="medusa", env=asked)

    assert "_MEDUSA_COMPLETE" in shown.output
    assert completed.output.split() == ["chat"]


@pytest.mark.parametrize("columns", ["60", "80"])
def test_no_option_is_cut_however_narrow_the_terminal_is(columns: str) -> None:
    code = (
        "from typer.testing import CliRunner; from server.cli import COMMANDS, create_cli\n"
        "for command in COMMANDS: print(CliRunner().invoke(create_cli(), [command.__name__, '--help']).output)"
    )
    environment = {**os.environ, "COLUMNS": columns, "PYTHONIOENCODING": "utf-8"}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout

    assert "--max-perplexity-percent" in shown
    assert re.findall(r"--\S*\u2026", shown) == []


@pytest.mark.parametrize("command", [command.__name__ for command in COMMANDS])
def test_every_command_shows_examples_that_it_understands(command: str) -> None:
    shown = CliRunner().invoke(create_cli(), [command, "--help"], env={"COLUMNS": "200"}).output
    program: Any = get_command(create_cli())

    assert EXAMPLES[command]
    for example in EXAMPLES[command]:
        assert example in shown
        _, name, *words = shlex.split(example.partition(" < ")[0])
        assert name == command
        program.commands[command].make_context(command, words)
