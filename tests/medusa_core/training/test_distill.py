import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from medusa_core.checkpoints import save_heads
from medusa_core.errors import ConfigurationError
from medusa_core.training.distill import DistillPlan, distill
from medusa_core.training.encoding import template_ids
from medusa_core.training.records import read_records
from tests.cast import random_heads
from tests.medusa_core.training.cast import PLAIN_TEMPLATE, tokenizer

ROOT = Path(__file__).parents[3]
ENDS = tuple(range(2, 90))  # so many that answers end early
PLAN = DistillPlan(max_tokens=12, batch_size=3)
QUESTIONS = ["Yes.", "No. Yes. user", "What does textwrap.dedent do?", "def", "text.strip()"]


@cache
def lively() -> LlamaForCausalLM:
    """A random model whose weights are large enough for it to say something else at every prompt."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def saved(folder: Path, ends: Sequence[int] = (2,)) -> Path:
    """The lively model and its tokenizer in a folder; `ends` are its end tokens."""
    lively().save_pretrained(folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": list(ends)}))
    tokenizer().save_pretrained(folder)
    return folder


def write_prompts(path: Path, count: int | None = None) -> Path:
    """All prompts, or the first few of them."""
    records: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": text}]} for text in QUESTIONS]
    records += [{"text": "def dedent(text):\n"}, {"text": "What"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records[:count]))
    return path


def read(path: Path) -> dict[int, dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({record["source"] for record in records}) == len(records)
    return {record["source"]: record for record in records}


def test_answers_are_those_of_plain_greedy_generation(tmp_path: Path) -> None:
    model, own = saved(tmp_path / "model"), tokenizer()

    distill(str(model), write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", PLAN, "cpu")

    for source, record in read(tmp_path / "out.jsonl").items():
        if "text" in record:
            prompt = own(["def dedent(text):\n", "What"][source - 6])["input_ids"]
        else:
            assert record["messages"][0]["content"] == QUESTIONS[source - 1]
            prompt = own.apply_chat_template(record["messages"][:-1], add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
        expected = lively().generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
        text = own.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
        assert (record["text"] if "text" in record else record["messages"][-1]["content"]).endswith(text)
        assert record["finish_reason"] == ("stop" if 2 in expected else "length")


def test_a_killed_run_resumes_with_nothing_lost_or_doubled(tmp_path: Path) -> None:
    model, prompts, out = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    distill(str(model), prompts, tmp_path / "whole.jsonl", PLAN, "cpu")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    distill(str(model), write_prompts(tmp_path / "in.jsonl", 1), out, PLAN, "cpu")
    out.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # torn in the middle of the fourth answer
    write_prompts(prompts)

    made = distill(str(model), prompts, out, PLAN, "cpu")

    assert (made.answers, made.written) == (len(QUESTIONS) + 2, len(QUESTIONS) - 1)
    assert read(out) == read(tmp_path / "whole.jsonl")


def test_a_process_that_is_killed_loses_and_doubles_nothing(tmp_path: Path) -> None:
    model, prompts, out = saved(tmp_path / "model"), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"dedent {number}"}) + "\n" for number in range(150)))
    plan = replace(PLAN, max_tokens=40, batch_size=32, temperature=1.0)
    slowly = replace(plan, batch_size=2)  # so that there is a middle
    code = (
        "from pathlib import Path; from medusa_core.training.distill import DistillPlan, distill\n"
        f"distill({str(model)!r}, Path({str(prompts)!r}), Path({str(out)!r}), {slowly!r}, 'cpu')"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 5):
            time.sleep(0.005)
        running.kill()
    assert running.returncode == -signal.SIGKILL, "it was ended in the middle"
    kept = out.read_bytes()
    assert kept.count(b"\n") < 150
    with prompts.open("a") as file:  # and there are more prompts by now
        file.write('{"text": "What"}\n')

    made = distill(str(model), prompts, out, plan, "cpu")

    assert made.answers == made.written + kept.count(b"\n") == 151
    assert out.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    distill(str(model), prompts, tmp_path / "whole.jsonl", plan, "cpu")
    assert read(out) == read(tmp_path / "whole.jsonl")


def test_a_finished_run_writes_nothing_more(tmp_path: Path) -> None:
    model, prompts, out = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    distill(str(model), prompts, out, PLAN, "cpu")
    content = out.read_bytes()

    distill(str(model), prompts, out, PLAN, "cpu")

    assert out.read_bytes() == content


def test_what_is_distilled_can_be_trained_on(tmp_path: Path) -> None:
    model, out = saved(tmp_path / "model"), tmp_path / "out.jsonl"
    distill(str(model), write_prompts(tmp_path / "in.jsonl"), out, PLAN, "cpu")

    assert len(list(read_records(out))) == len(QUESTIONS) + 2


def test_sampled_answers_depend_on_the_seed_alone(tmp_path: Path) -> None:
    model, prompts = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl")
    plan = replace(PLAN, temperature=1.0)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        distill(str(model), prompts, tmp_path / name, replace(plan, seed=seed), "cpu")

    assert read(tmp_path / "a") == read(tmp_path / "b")
    assert read(tmp_path / "a") != read(tmp_path / "c")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_batch_changes_no_answer(tmp_path: Path, temperature: float) -> None:
    model, prompts = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl")
    plan = replace(PLAN, temperature=temperature, max_tokens=30, top_p=0.9)
    for name, size in (("one", 1), ("three", 3), ("all", 32)):
        distill(str(model), prompts, tmp_path / name, replace(plan, batch_size=size), "cpu")

    assert read(tmp_path / "one") == read(tmp_path / "three") == read(tmp_path / "all")


def test_every_turn_of_the_user_is_answered_behind_the_models_own_answers(tmp_path: Path) -> None:
    model, prompts, own = saved(tmp_path / "model", ENDS), tmp_path / "in.jsonl", tokenizer()
    turns = [("system", "No."), ("user", "Yes."), ("assistant", "old"), ("user", "What"), ("assistant", "older")]
    messages = [{"role": role, "content": content} for role, content in turns]
    prompts.write_text(json.dumps({"messages": messages}) + "\n")

    distill(str(model), prompts, tmp_path / "all", replace(PLAN, max_tokens=64), "cpu")
    distill(str(model), prompts, tmp_path / "last", replace(PLAN, max_tokens=64, turns="last"), "cpu")

    answered, last = read(tmp_path / "all")[1]["messages"], read(tmp_path / "last")[1]["messages"]
    assert [message["role"] for message in answered] == [role for role, _ in turns]
    assert [message["content"] for message in answered[0::1] if message["role"] == "user"] == ["Yes.", "What"]
    assert "old" not in [message["content"] for message in answered]
    assert last[:4] == messages[:4]
    for count in (2, 4):
        ids = template_ids(own, answered[:count], add_generation_prompt=True)
        expected = lively().generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=list(ENDS))
        text = own.decode(expected[0, len(ids) : -1], skip_special_tokens=True)
        assert answered[count]["content"] == text


def test_a_run_with_other_options_is_refused(tmp_path: Path) -> None:
    model, prompts, out = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    distill(str(model), prompts, out, PLAN, "cpu")
    content = out.read_bytes()

    with pytest.raises(ConfigurationError, match=r"was begun with max_tokens 12 \(now 13\)"):
        distill(str(model), prompts, out, replace(PLAN, max_tokens=13), "cpu")
    assert out.read_bytes() == content


def test_prompts_that_changed_under_their_answers_are_refused(tmp_path: Path) -> None:
    model, prompts, out = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    distill(str(model), prompts, out, PLAN, "cpu")
    lines = prompts.read_text().splitlines(keepends=True)

    prompts.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ConfigurationError, match="line 1 is not what was answered; only add lines"):
        distill(str(model), prompts, out, PLAN, "cpu")
    prompts.write_text("".join(lines[:3]))
    with pytest.raises(ConfigurationError, match="has 3 prompts, line 7 is answered too"):
        distill(str(model), prompts, out, PLAN, "cpu")


def test_what_is_wrong_with_the_last_prompt_is_said_before_the_first_answer(tmp_path: Path) -> None:
    model, prompts, out = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    with prompts.open("a") as file:
        file.write("{")

    with pytest.raises(ConfigurationError, match="line 8: not JSON"):
        distill(str(model), prompts, out, PLAN, "cpu")
    assert out.read_bytes() == b""


def test_a_later_turn_that_the_template_refuses_is_said_before_the_first_answer(tmp_path: Path) -> None:
    model, prompts, file = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl"), tmp_path / "own.jinja"
    said = [("human", "Yes."), ("gpt", ""), ("system", "Be brief."), ("human", "No.")]
    with prompts.open("a") as lines:
        lines.write(json.dumps({"conversations": [{"from": who, "value": text} for who, text in said]}) + "\n")
    file.write_text(
        "{% for message in messages if message['role'] == 'system' and message != messages[0] %}"
        "{{ raise_exception('the system speaks first') }}{% endfor %}" + PLAIN_TEMPLATE
    )

    with pytest.raises(ConfigurationError, match=r"line 8: .*the system speaks first"):
        distill(str(model), prompts, tmp_path / "out.jsonl", PLAN, "cpu", None, file)
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_prompt_that_fills_the_context_is_skipped_and_counted(tmp_path: Path) -> None:
    model, prompts, out = saved(tmp_path / "model"), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"text": "' + "Yes. " * 400 + '"}\n{"text": "What"}\n')

    made = distill(str(model), prompts, out, PLAN, "cpu")

    assert (made.answers, made.written, made.skipped) == (1, 1, 1)
    assert list(read(out)) == [2]


def test_a_turn_that_no_longer_fits_ends_the_conversation_before_it(tmp_path: Path) -> None:
    model, prompts, out = saved(tmp_path / "model", ENDS), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    turns = [{"role": "user", "content": text} for text in ("Yes.", "Yes. " * 400)]
    prompts.write_text(json.dumps({"messages": turns}) + "\n")

    made = distill(str(model), prompts, out, replace(PLAN, max_tokens=64), "cpu")

    assert made.shortened == 1
    assert [message["role"] for message in read(out)[1]["messages"]] == ["user", "assistant"]


def test_an_answer_gets_the_room_that_its_own_prompt_leaves(tmp_path: Path) -> None:
    # The longest prompt of a batch must not shorten the answers of the others.
    model, prompts, out = saved(tmp_path / "model"), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"text": "' + "Yes. " * 80 + '"}\n{"text": "What"}\n')

    distill(str(model), prompts, out, replace(PLAN, max_tokens=250), "cpu")
    distill(str(model), prompts, tmp_path / "alone.jsonl", replace(PLAN, max_tokens=250, batch_size=1), "cpu")

    assert read(out) == read(tmp_path / "alone.jsonl")
    for record in read(out).values():  # and no more room than the context has
        prompt = record["text"][: 400 if record["source"] == 1 else 4]
        ids = tokenizer()(prompt)["input_ids"]
        limit = min(250, 256 - len(ids))
        expected = lively().generate(torch.tensor([ids]), max_new_tokens=limit, do_sample=False)
        assert record["text"] == tokenizer().decode(expected[0], skip_special_tokens=True).rstrip("\ufffd")


def test_half_a_character_at_the_limit_is_left_out(tmp_path: Path) -> None:
    model, prompts, out = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    whole = tmp_path / "whole.jsonl"
    distill(str(model), prompts, whole, PLAN, "cpu")

    halves = 0
    for limit in range(1, 12):
        distill(str(model), prompts, out, replace(PLAN, max_tokens=limit), "cpu")
        for source, record in read(out).items():
            written = record["text"] if "text" in record else record["messages"][-1]["content"]
            own = read(whole)[source]
            assert (own["text"] if "text" in own else own["messages"][-1]["content"]).startswith(written)
            halves += record["finish_reason"] == "length" and len(written) < limit
        out.unlink()
    assert halves > 0, "the model writes bytes that are no characters of their own"


def test_a_template_file_goes_before_the_models_own(tmp_path: Path) -> None:
    model, prompts = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl")
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0]['content'] }}")

    distill(str(model), prompts, tmp_path / "a", PLAN, "cpu", chat_template=template)
    distill(str(model), prompts, tmp_path / "b", PLAN, "cpu")

    assert read(tmp_path / "a")[1] != read(tmp_path / "b")[1]


def test_heads_write_a_single_prompt_and_change_nothing(tmp_path: Path) -> None:
    model, prompts = saved(tmp_path / "model"), write_prompts(tmp_path / "in.jsonl")
    save_heads(tmp_path / "heads", random_heads(lively().get_output_embeddings().weight.detach()), str(model))
    plan = replace(PLAN, batch_size=1, temperature=0.8)

    plain = distill(str(model), prompts, tmp_path / "a", plan, "cpu")
    ahead = distill(str(model), prompts, tmp_path / "b", plan, "cpu", heads=str(tmp_path / "heads"))

    assert (plain.writer, ahead.writer) == ("batch", "engine")
    assert read(tmp_path / "a") == read(tmp_path / "b")


def test_the_plan_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigurationError, match="turns is 'first', it must be all or last"):
        DistillPlan(turns="first")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="batch_size is 0, it must be at least 1"):
        DistillPlan(batch_size=0)


def test_an_output_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    model, out = saved(tmp_path / "model"), tmp_path / "out.jsonl"
    out.write_text('{"text": "mine"}\n')

    with pytest.raises(ConfigurationError, match="not written by distill"):
        distill(str(model), write_prompts(tmp_path / "in.jsonl"), out, PLAN, "cpu")
    assert out.read_text() == '{"text": "mine"}\n'


@pytest.mark.parametrize(
    ("template", "complaint"),
    [(None, "nothing to answer"), ("{{ raise_exception('never') }}", "refuses this conversation: never")],
)
def test_a_prompt_that_cannot_be_answered_is_named(tmp_path: Path, template: str | None, complaint: str) -> None:
    model, prompts, file = saved(tmp_path / "model"), tmp_path / "in.jsonl", tmp_path / "own.jinja"
    role = "assistant" if template is None else "user"
    prompts.write_text(json.dumps({"messages": [{"role": role, "content": "Yes."}]}) + "\n")
    file.write_text(str(template))

    with pytest.raises(ConfigurationError, match=f"line 1.*{complaint}"):
        distill(str(model), prompts, tmp_path / "out", PLAN, "cpu", None, file if template is not None else None)
