"""Every block of every page: run, or read for what it names, or on a page that says why it is not run."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml

from server.cli import create_cli
from tests.live_server import clean_environment, serving

ROOT = Path(__file__).parent.parent
ADDRESS = "http://127.0.0.1:8000"
ENVIRONMENT = clean_environment(PYTHONPATH=str(ROOT))
MEDUSA = [sys.executable, "-c", "from server.cli import main; main()"]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}

# What is said of a language: who looks at its blocks, here or elsewhere.
LANGUAGES = {"bash", "json", "python", "text", "yaml"}
ELSEWHERE = {
    "caddy": "run by hand in front of the server, as its page says",
    "html": "tests/browser/test_deep_chat.py",
    "javascript": "tests/clients/test_page.py runs OpenAI's; the other was run by hand, as its page says",
    "nginx": "run by hand in front of the server, as its page says",
}
# Commands of which only the syntax is tested here, by program, and what running them needs. A page that shows one has
# to say so, in a sentence of the kind "not run by the tests: it needs root, a cluster".
NEEDS = {
    "accelerate": "several GPUs",
    "cp": "a container engine",
    "docker": "a container engine",
    "export": "a container engine",
    "for": "a cluster",
    "journalctl": "root",
    "kubectl": "a cluster",
    "pip": "a network",
    "printf": "root",
    "sudo": "root",
}
# The same of `medusa` commands, whose options are tested all the same, by what stands in them.
MEDUSA_NEEDS = {
    r"--device cuda": "a GPU",
    r"--(?:model|heads) (?!\./)\S+/\S+": "a network",
    r"my-(?:model|heads)|joint|prompts\.jsonl|answers\.jsonl": "files of your own",
}
# `medusa generate` is run by test_readme.py, and what others need is told by MEDUSA_NEEDS
RUN_ALONE = ("inspect", "convert")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line of a bash block, continued lines joined, without settings of variables before it."""

    place: str
    words: tuple[str, ...]

    @property
    def page(self) -> str:
        return self.place.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.place} {' '.join(self.words[:3])}"


def blocks_of(page: str, text: str) -> Iterator[Block]:
    for found in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[1].strip(), found[2])


BLOCKS = [block for page, text in PAGES.items() for block in blocks_of(page, text)]


def blocks(language: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language == language]


def commands() -> Iterator[Command]:
    for block in BLOCKS:
        if block.language != "bash":
            continue
        # one command each; what stands behind a | reads what the first wrote, and a loop is its first line
        text = re.sub(r"^for .*?^done$", lambda loop: loop[0].splitlines()[0], block.text, flags=re.M | re.S)
        for line in re.sub(r"(\\|\|)\n", " ", text).splitlines():
            for part in re.split(r" && ", line):
                words = shlex.split(part, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words:
                    yield Command(block.place, tuple(words))


COMMANDS = list(commands())


def of(program: str) -> list[Any]:
    found = [command for command in COMMANDS if Path(command.words[0]).name == program]
    return [pytest.param(command, id=str(command)) for command in found]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving([*MEDUSA, "serve"], tmp_path_factory.mktemp("server"), ENVIRONMENT) as address:
        yield address


def test_every_block_says_in_which_language_it_is_and_somebody_looks_at_it() -> None:
    tree_of_the_repository = [block.place for block in BLOCKS if block.page == "CONTRIBUTING.md" and not block.language]

    assert len(tree_of_the_repository) == 1
    known = LANGUAGES | ELSEWHERE.keys()
    assert [block.place for block in BLOCKS if block.language not in known] == tree_of_the_repository


def test_every_command_is_tested_or_its_page_says_why_it_is_not_run() -> None:
    tested = {"curl", "make", "medusa", "python"}
    silent = []
    for command in COMMANDS:
        program, line = Path(command.words[0]).name, " ".join(command.words)
        assert program in tested | NEEDS.keys(), f"{command}: nobody tests {program}, and nothing says why"
        needs = {NEEDS[program]} if program in NEEDS else set()
        if program == "medusa":
            needs = {need for pattern, need in MEDUSA_NEEDS.items() if re.search(pattern, line)}
        excuses = " ".join(re.findall(r"not run by the tests:([^.]*)\.", re.sub(r"\s+", " ", PAGES[command.page])))
        silent += [f"{command}: needs {need}" for need in needs if need not in excuses]

    assert silent == []


@pytest.mark.parametrize("block", blocks("bash"))
def test_a_shell_would_understand_it(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", of("curl"))
def test_a_curl_line_answers(server: str, command: Command) -> None:
    # read as curl would, because not every machine has it
    words = command.words
    url = next(word for word in words if word.startswith(ADDRESS))
    values = dict(itertools.pairwise(words))
    if "-d" not in words:
        assert httpx.get(url.replace(ADDRESS, server), timeout=60).status_code == 200
        return
    name, _, value = values["-H"].partition(": ")

    answer = httpx.post(url.replace(ADDRESS, server), headers={name: value}, content=values["-d"], timeout=60)

    assert answer.status_code == 200, answer.text
    assert "x-ignored-fields" not in answer.headers
    is_streamed = '"stream": true' in values["-d"]
    assert answer.text.endswith("data: [DONE]\n\n") if is_streamed else answer.json()["choices"]


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_runs(server: str, block: Block, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", block.text.replace(ADDRESS, server)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() != ""


@pytest.mark.parametrize("command", of("medusa"))
def test_a_medusa_command_has_the_options_it_is_shown_with(command: Command) -> None:
    program: Any = typer.main.get_command(create_cli())
    name, *arguments = command.words[1:]
    known = {option for param in program.commands[name].params for option in (*param.opts, *param.secondary_opts)}

    assert {word for word in arguments if word.startswith("--")} <= known


@pytest.mark.parametrize(
    "command",
    [one for one in of("medusa") if one.values[0].words[1] in RUN_ALONE and "my-" not in " ".join(one.values[0].words)],
)
def test_a_medusa_command_of_the_demo_model_runs(command: Command, tmp_path: Path) -> None:
    result = subprocess.run(
        [*MEDUSA, *command.words[1:]], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=100
    )

    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).strip() != ""


@pytest.mark.parametrize("command", of("python"))
def test_a_program_of_the_repository_has_the_options_it_is_shown_with(command: Command) -> None:
    named, *arguments = command.words[1:]
    path = ROOT / (arguments.pop(0).replace(".", "/") + ".py" if named == "-m" else named)
    text = path.read_text(encoding="utf-8")

    for option in (word for word in arguments if word.startswith("--")):
        # as text of argparse, or as the name of an argument of a typer command
        assert f'"{option}"' in text or f"{option.removeprefix('--').replace('-', '_')}:" in text, option


@pytest.mark.parametrize("command", of("make"))
def test_a_make_target_exists(command: Command) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    assert set(command.words[1:]) <= set(targets)


@pytest.mark.parametrize("block", blocks("json"))
def test_a_json_block_is_json(block: Block) -> None:
    assert json.loads(block.text) is not None


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_yaml_block_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.text) is not None
