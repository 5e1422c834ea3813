import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.commands.refusals import refusal

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--mode", "psychic"], "--mode"),
        (["--quantize", "int4", "--device", "cpu"], "int4 needs a CUDA device"),
    ],
)
def test_a_wrong_option_is_one_clear_line(words: list[str], named: str) -> None:
    assert named in refusal("generate", "hi", *words)


def medusa(*words: str, asked: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from server.cli import main; main()", *words]
    return subprocess.run(command, cwd=ROOT, input=asked, capture_output=True, text=True, timeout=60, check=False)


def test_the_prompt_may_come_from_the_input_and_the_answer_as_json() -> None:
    words = ("--threads", "1", "--max-tokens", "6", "--json")
    ended = medusa("generate", "-", *words, asked="What does textwrap.dedent do?\n")
    told = json.loads(ended.stdout)

    assert (told["model"], told["tokens"], told["finish_reason"], ended.stderr) == ("demo", 6, "length", "")
    assert "".join(one["text"] for step in told["brought"] for one in step) == told["text"]
    assert sum(told["by_source"].values()) == 6


@pytest.mark.parametrize("closed", ["", " <&-"])
def test_an_empty_input_is_no_prompt_nor_is_a_closed_one(closed: str) -> None:
    command = shlex.join([sys.executable, "-c", "from server.cli import main; main()", "generate", "-"])
    ended = subprocess.run(
        command + closed, shell=True, cwd=ROOT, input="", capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: the prompt - stands for the input, which is empty")
