"""The README's blocks, run against a real server."""

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.live_server import clean_environment, serving

ROOT = Path(__file__).parent.parent
ADDRESS = "http://127.0.0.1:8000"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = clean_environment(PYTHONPATH=str(ROOT))
MEDUSA = [sys.executable, "-c", "from server.cli import main; main()"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """The words of every line of the bash blocks that starts a program."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(program + " ")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving([*MEDUSA, "serve"], tmp_path_factory.mktemp("server"), ENVIRONMENT) as address:
        yield address


@pytest.mark.parametrize("words", commands("curl"), ids=lambda words: next(w for w in words if w.startswith("http")))
def test_a_curl_line_answers(server: str, words: list[str]) -> None:
    # read as curl would, because not every machine has it
    url = next(word for word in words if word.startswith(ADDRESS))
    values = dict(itertools.pairwise(words))
    name, _, value = values["-H"].partition(": ")

    answer = httpx.post(url.replace(ADDRESS, server), headers={name: value}, content=values["-d"], timeout=60)

    assert answer.status_code == 200, answer.text
    assert "x-ignored-fields" not in answer.headers
    is_streamed = '"stream": true' in values["-d"]
    assert answer.text.endswith("data: [DONE]\n\n") if is_streamed else answer.json()["choices"]


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_runs(server: str, block: str, tmp_path: Path) -> None:
    program = block.replace(ADDRESS, server)

    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() != ""


@pytest.mark.parametrize("words", commands("medusa"), ids=" ".join)
def test_a_medusa_command_has_the_options_it_is_shown_with(words: list[str]) -> None:
    result = subprocess.run(
        [*MEDUSA, words[1], "--help"], capture_output=True, text=True, timeout=60, env=ENVIRONMENT | {"COLUMNS": "200"}
    )

    assert result.returncode == 0, result.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in result.stdout


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
