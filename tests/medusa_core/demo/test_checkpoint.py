"""The checkpoint that ships: small, greedy, and able to do what the README says it does."""

import json
from functools import cache
from pathlib import Path

from safetensors import safe_open

from medusa_core import demo
from medusa_core.calibration import Calibration
from medusa_core.demo.measure import Measurer, read_prompts

FOLDER = Path(demo.__file__).parent / "checkpoint"
HELD_OUT = Path(demo.__file__).parent / "held_out.jsonl"


@cache
def measurer() -> Measurer:
    return Measurer(FOLDER, FOLDER / "heads", tree_nodes=32)


def test_all_files_together_stay_under_20_megabytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 20_000_000


def test_weights_are_bf16() -> None:
    for file in (FOLDER / "model.safetensors", FOLDER / "heads" / "medusa_lm_head.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}


def test_it_is_greedy_by_default() -> None:
    assert json.loads((FOLDER / "generation_config.json").read_text())["do_sample"] is False


def test_every_head_is_calibrated() -> None:
    assert Calibration.load(FOLDER / "heads" / "calibration.json").num_heads == 4


def test_it_answers_what_dedent_does_with_its_documentation_and_ends() -> None:
    question = {"messages": [{"role": "user", "content": "What does textwrap.dedent do?"}]}

    answer = measurer().answer(question, 32)

    assert answer.ended
    assert "textwrap.dedent(text)" in answer.text
    assert "Remove any common leading whitespace from every line in `text`." in answer.text


def test_it_continues_source_with_indented_code() -> None:
    answer = measurer().answer({"text": "def read_file(path):\n    "}, 32)

    assert "\n    " in answer.text


def test_held_out_prompts_take_few_steps_and_the_tree_changes_no_answer() -> None:
    prompts = [prompt for prompt in read_prompts(HELD_OUT) if "messages" in prompt][:4]

    plain = [measurer().answer(prompt, 1) for prompt in prompts]
    tree = [measurer().answer(prompt, 32) for prompt in prompts]

    assert [answer.text for answer in tree] == [answer.text for answer in plain]
    assert sum(answer.steps for answer in tree) < 0.6 * sum(answer.steps for answer in plain)
