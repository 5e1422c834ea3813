"""What the README says of the repository; its blocks are run in test_blocks.py."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.live_server import clean_environment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = clean_environment(PYTHONPATH=str(ROOT))
MEDUSA = [sys.executable, "-c", "from server.cli import main; main()"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """The words of every line of the bash blocks that starts a program."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(program + " ")]


def test_the_answer_in_the_terminal_is_shown_with_its_tokens_per_step(tmp_path: Path) -> None:
    ((_, *arguments),) = [words for words in commands("medusa") if words[1] == "generate"]

    result = subprocess.run(
        [*MEDUSA, *arguments], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=100
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() != ""
    assert "tokens per step" in result.stderr


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))

    assert {words[1] for words in commands("make")} | set(re.findall(r"`make ([\w-]+)`", README)) <= targets


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(r"`((?:medusa_core|server|tests)/[\w/.]*)`", README)

    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_continuous_check_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "`make test`" in README


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(README.splitlines()) < 250
