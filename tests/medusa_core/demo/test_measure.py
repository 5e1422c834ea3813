import json
from pathlib import Path

import pytest

from medusa_core.checkpoints import save_heads
from medusa_core.demo.measure import Answered, Measurer, ratio, read_prompts
from medusa_core.demo.package import export_model
from medusa_core.heads import DraftHeads
from tests.medusa_core.training.cast import tiny_llama, tokenizer

PROMPTS = [{"messages": [{"role": "user", "content": "Yes."}]}, {"text": "def dedent(text):\n"}]


@pytest.fixture
def measurer(tmp_path: Path) -> Measurer:
    own = tokenizer()
    model = tiny_llama(len(own))
    save_heads(tmp_path / "heads", DraftHeads.from_base(model.get_output_embeddings().weight, 2), "tiny")
    export_model(model, own, tmp_path / "model")
    return Measurer(tmp_path / "model", tmp_path / "heads", tree_nodes=8)


def test_the_tree_changes_the_steps_and_never_the_answer(measurer: Measurer) -> None:
    plain, tree = measurer.answer(PROMPTS[1], 1), measurer.answer(PROMPTS[1], 8)

    assert plain.text == tree.text
    assert plain.steps == plain.tokens - 1
    assert tree.steps <= plain.steps


def test_plain_decoding_emits_one_token_per_step(measurer: Measurer) -> None:
    measured = measurer.tokens_per_step(PROMPTS, nodes=[1, 8])

    assert measured.everything[1] == measured.questions[1] == measured.source[1] == 1.0
    assert measured.everything[8] >= 1.0


def test_the_first_token_counts_in_no_step() -> None:
    answers = [Answered("", tokens=7, steps=2, ended=True), Answered("", tokens=5, steps=2, ended=True)]

    assert ratio(answers) == 2.5
    assert ratio([]) == 0.0


def test_prompts_are_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(prompt) for prompt in PROMPTS) + "\n\n")

    assert read_prompts(tmp_path / "prompts.jsonl") == PROMPTS
