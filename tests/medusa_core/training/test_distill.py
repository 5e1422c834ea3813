import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medusa_core.errors import ConfigurationError
from medusa_core.training.distill import DistillPlan, distill
from medusa_core.training.records import read_records
from tests.medusa_core.training.cast import base, saved_base

PLAN = DistillPlan(max_tokens=12, batch_size=3)
QUESTIONS = ["Yes.", "No. Yes. user", "What does textwrap.dedent do?", "def", "text.strip()"]


def write_prompts(path: Path) -> Path:
    records: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": text}]} for text in QUESTIONS]
    records += [{"text": "def dedent(text):\n"}, {"text": "What"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path: Path) -> dict[int, dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({record["source"] for record in records}) == len(records)
    return {record["source"]: record for record in records}


def test_answers_are_those_of_plain_greedy_generation(tmp_path: Path) -> None:
    model, own = saved_base(tmp_path / "model"), base()

    distill(str(model), write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", PLAN, "cpu")

    for source, record in read(tmp_path / "out.jsonl").items():
        if "text" in record:
            prompt = own.tokenizer(["def dedent(text):\n", "What"][source - 6])["input_ids"]
        else:
            assert record["messages"][0]["content"] == QUESTIONS[source - 1]
            prompt = own.tokenizer.apply_chat_template(
                record["messages"][:-1], add_generation_prompt=True, return_dict=True
            )["input_ids"]
        expected = own.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
        text = own.tokenizer.decode(expected, skip_special_tokens=True)
        assert (record["text"] if "text" in record else record["messages"][-1]["content"]).endswith(text)
        assert record["finish_reason"] == ("stop" if 2 in expected else "length")


def test_a_killed_run_resumes_with_nothing_lost_or_doubled(tmp_path: Path) -> None:
    model, prompts, out = saved_base(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    distill(str(model), prompts, tmp_path / "whole.jsonl", PLAN, "cpu")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # torn in the middle of the fourth answer

    count = distill(str(model), prompts, out, PLAN, "cpu")

    assert count == len(QUESTIONS) + 2
    assert read(out) == read(tmp_path / "whole.jsonl")


def test_a_finished_run_writes_nothing_more(tmp_path: Path) -> None:
    model, prompts, out = saved_base(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    distill(str(model), prompts, out, PLAN, "cpu")
    content = out.read_bytes()

    distill(str(model), prompts, out, PLAN, "cpu")

    assert out.read_bytes() == content


def test_what_is_distilled_can_be_trained_on(tmp_path: Path) -> None:
    model, out = saved_base(tmp_path / "model"), tmp_path / "out.jsonl"
    distill(str(model), write_prompts(tmp_path / "in.jsonl"), out, PLAN, "cpu")

    assert len(list(read_records(out))) == len(QUESTIONS) + 2


def test_sampled_answers_depend_on_the_seed_alone(tmp_path: Path) -> None:
    model, prompts = saved_base(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl")
    plan = replace(PLAN, temperature=1.0)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        distill(str(model), prompts, tmp_path / name, replace(plan, seed=seed), "cpu")

    assert read(tmp_path / "a") == read(tmp_path / "b")
    assert read(tmp_path / "a") != read(tmp_path / "c")


def test_an_output_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    model, out = saved_base(tmp_path / "model"), tmp_path / "out.jsonl"
    out.write_text('{"text": "mine"}\n')

    with pytest.raises(ConfigurationError, match="not written by distill"):
        distill(str(model), write_prompts(tmp_path / "in.jsonl"), out, PLAN, "cpu")
    assert out.read_text() == '{"text": "mine"}\n'


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"messages": [{"role": "assistant", "content": "Yes."}]}, "nothing to answer"),
        ({"text": "Yes. " * 400}, "tokens, the model takes 256"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_named(tmp_path: Path, record: dict[str, Any], complaint: str) -> None:
    model, prompts = saved_base(tmp_path / "model"), tmp_path / "in.jsonl"
    prompts.write_text(json.dumps(record) + "\n")

    with pytest.raises(ConfigurationError, match=f"line 1.*{complaint}"):
        distill(str(model), prompts, tmp_path / "out.jsonl", PLAN, "cpu")
