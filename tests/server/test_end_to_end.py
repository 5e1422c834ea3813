"""The real engine behind the real server, with a tiny random model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from msgspec.structs import replace
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from medusa_core.checkpoints import save_heads
from medusa_core.errors import MedusaError
from medusa_core.text import TextCodec
from server.cli import create_cli
from server.worker.client import ENGINE_FACTORY
from server.worker.core_engine import load_engine
from tests.cast import random_heads
from tests.medusa_core.test_adapters import save_lora
from tests.server.running import MODEL, Running, running
from tests.server.worker_info import LOAD
from tests.tiny_tokenizers import save_byte_level

PROMPT = "def dedent(text):"


def tiny_llama(vocab_size: int, eos: int) -> LlamaForCausalLM:
    """A random Llama."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        # wide enough that a random model does not repeat itself
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=eos,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def save_tiny_checkpoint(folder: Path) -> Path:
    """A random Llama with the tiny tokenizer, and random heads in `heads/`."""
    save_byte_level(folder)
    model = tiny_llama(300, eos=1)
    model.save_pretrained(folder)
    save_heads(folder / "heads", random_heads(model.lm_head.weight), str(folder))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint, whose heads bring an adapter for the base."""
    base = save_tiny_checkpoint(tmp_path_factory.mktemp("adapted"))
    save_lora(tiny_llama(300, eos=1), base / "heads" / "adapter", ["q_proj", "v_proj"])
    return base


@pytest.fixture(scope="module")
def server(adapted: Path) -> Iterator[Running]:
    heads = str(adapted / "heads")
    with running(adapted, ENGINE_FACTORY, heads=heads, adapter=False, tree_nodes=8, threads=1) as server:
        assert server.worker.state.phase == "ready", server.worker.state.detail
        yield server


@pytest.fixture(scope="module")
def bare(adapted: Path) -> Iterator[Running]:
    """A server with the adapter, and without what else is on by default and can be left out; a test looks at each."""
    without: dict[str, Any] = {"prefix_cache": 0, "prompt_lookup": False, "recycling": False}
    with running(adapted, ENGINE_FACTORY, tree_nodes=8, threads=1, **without) as server:
        yield server


def complete(server: Running, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 60, "temperature": 0, **fields}
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 1, "seed": 11}, {"temperature": 0.7, "seed": 3}]
)
def test_speculation_does_not_change_the_text(server: Running, sampling: dict[str, Any]) -> None:
    answers = [complete(server, **sampling, speculation={"mode": mode}) for mode in ("tree", "chain", "off", "auto")]

    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert len({answer["usage"]["completion_tokens"] for answer in answers}) == 1
    assert answers[0]["speculation"]["drafted"] > 0
    assert answers[2]["speculation"]["drafted"] == 0
    assert answers[2]["speculation"]["tokens_per_step"] == 1


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    "asked",
    [
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.5},
        {"logit_bias": {"40": 5, "41": -100}},
        {"min_tokens": 50},
    ],
    ids=str,
)
def test_adjustments_have_an_effect_and_speculation_none(
    server: Running, asked: dict[str, Any], temperature: float
) -> None:
    # what would end the answer at once, so that a least length shows
    common: dict[str, Any] = {"temperature": temperature, "seed": 11, "stop_token_ids": list(range(20, 200))}
    common = common if "min_tokens" in asked else {**common, "stop_token_ids": []}
    without = complete(server, **common)
    texts = [
        complete(server, **common, **asked, speculation={"mode": mode})["choices"][0]["text"]
        for mode in ("tree", "chain", "off")
    ]

    assert len(set(texts)) == 1
    assert texts[0] != without["choices"][0]["text"]


def test_each_steps_record_agrees_with_the_statistics_and_the_text(server: Running) -> None:
    asked = {"mode": "tree", "detail": True}
    alone, answer = complete(server, ignore_eos=True), complete(server, ignore_eos=True, speculation=asked)
    stats = answer["speculation"]
    first, *steps = stats["detail"]

    assert answer["choices"] == alone["choices"]
    assert (first["step"], first["tree"], first["delivered"]) == (0, [], 1)
    assert [len(step["path"]) for step in steps] == [len(step["tokens"]) - 1 for step in steps]
    nodes = [node for step in steps for node in step["tree"][1:]]
    for source, counts in stats["by_source"].items():
        assert sum(node["source"] == source for node in nodes) == counts["drafted"]
    assert len(steps) == stats["steps"] and len(nodes) == stats["drafted"]
    told = [token for record in stats["detail"] for token in record["tokens"][: record["delivered"]]]
    assert "".join(token["text"] for token in told) == answer["choices"][0]["text"]
    assert sum(token["source"] != "base" for token in told) == stats["accepted"]


def test_two_answers_tell_where_they_part_and_by_what_gap(server: Running) -> None:
    lossy = {"mode": "tree", "acceptance": "typical", "epsilon": 1e-6, "detail": True}
    common: dict[str, Any] = {"temperature": 1, "seed": 11, "top_k": 9, "logprobs": 9, "ignore_eos": True}
    one = complete(server, **common, speculation=lossy)
    other = complete(server, **common, speculation={"mode": "off", "detail": True})
    ids, others = (
        [token["id"] for record in answer["speculation"]["detail"] for token in record["tokens"][: record["delivered"]]]
        for answer in (one, other)
    )
    mine, its = (answer["choices"][0]["logprobs"] for answer in (one, other))
    scores, theirs = mine["token_logprobs"], its["token_logprobs"]
    parted = next(place for place, pair in enumerate(zip(ids, others, strict=True)) if pair[0] != pair[1])

    assert len(ids) == len(scores) == 60
    # both are scored behind the same text there, so that the difference of their scores is one of logits
    assert scores[:parted] == pytest.approx(theirs[:parted], abs=1e-3)
    alternatives = its["top_logprobs"][parted]
    assert alternatives[mine["tokens"][parted]] == pytest.approx(scores[parted], abs=1e-3)
    assert alternatives[its["tokens"][parted]] == theirs[parted] != scores[parted]


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_stream_equals_the_answer(server: Running, temperature: float) -> None:
    arguments: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Grüße 🙂"}],
        "max_tokens": 80,
        "temperature": temperature,
        "seed": 5,
    }
    with server.openai() as client:
        whole = client.chat.completions.create(**arguments)
        chunks = list(client.chat.completions.create(**arguments, stream=True))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_stop_string_ends_the_answer_before_it(server: Running) -> None:
    text = complete(server)["choices"][0]["text"]
    stop = text[10:14]
    stopped = complete(server, stop=stop)

    assert stopped["choices"][0]["text"] == text[: text.index(stop)]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] < 60


def test_the_second_turn_finds_its_history_in_the_cache(server: Running) -> None:
    first = complete(server, prompt=PROMPT * 3, max_tokens=20)
    second = complete(server, prompt=PROMPT * 3, max_tokens=20)
    longer = complete(server, prompt=PROMPT * 3 + first["choices"][0]["text"] + PROMPT, max_tokens=20)

    assert second["choices"] == first["choices"]
    prompt_tokens = second["usage"]["prompt_tokens"]
    # another answer to the very prompt computes nothing, a next turn what is new
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == prompt_tokens
    assert prompt_tokens < longer["usage"]["prompt_tokens_details"]["cached_tokens"] < longer["usage"]["prompt_tokens"]


def test_without_a_prefix_cache_another_conversation_displaces_the_last(server: Running, bare: Running) -> None:
    def cached(asked: Running) -> list[int]:
        answers = [complete(asked, prompt=PROMPT * times, max_tokens=20) for times in (6, 6)]
        complete(asked, prompt="something else " * 6, max_tokens=20)
        answers.append(complete(asked, prompt=PROMPT * 6, max_tokens=20))
        assert len({str(answer["choices"]) for answer in answers}) == 1
        return [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers[1:]]

    again, later = cached(bare)
    assert again > 0 and later == 0
    assert cached(server) == [again, again]


def test_ids_and_text_are_the_same_prompt(server: Running, checkpoint: Path) -> None:
    ids = TextCodec.load(str(checkpoint)).encode(PROMPT)

    assert complete(server, prompt=ids)["choices"] == complete(server)["choices"]


def test_the_context_bounds_every_answer(server: Running) -> None:
    answer = complete(server, max_tokens=10_000, ignore_eos=True)

    assert answer["usage"]["total_tokens"] == 256
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_client_that_leaves_frees_the_engine(server: Running) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 230, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=20) as response:
        next(response.iter_lines())

    server.wait_for("medusa_requests_cancelled_total stage=decode", 1)
    assert complete(server, max_tokens=1)["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"heads": "/nowhere/heads"}, "/nowhere/heads"),
        ({"max_context": 100_000}, "100000"),
    ],
)
def test_what_the_engine_refuses_is_told(checkpoint: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(MedusaError) as refused:
        load_engine(replace(LOAD, model=str(checkpoint), num_threads=1, **options), lambda stage, share: None)

    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_generate_prints_the_text_and_its_tokens_per_step(checkpoint: Path) -> None:
    words = ["generate", PROMPT, "--raw", "--max-tokens", "30", "--temperature", "0", "--threads", "1"]
    words += ["--model", str(checkpoint), "--heads", str(checkpoint / "heads"), "--tree-nodes", "8"]
    ended = CliRunner().invoke(create_cli(), words)

    assert ended.exit_code == 0, ended.output
    assert ended.stdout.strip() != ""
    assert "[30 tokens, " in ended.stderr
    assert "tokens per step" in ended.stderr
    assert "tokens/s, first after" in ended.stderr


def test_heads_are_a_distill_and_a_train_away(checkpoint: Path, tmp_path: Path) -> None:
    prompts, answers, heads = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl", tmp_path / "heads"
    lines = [json.dumps({"messages": [{"role": "user", "content": f"Hello world {n}"}]}) for n in range(24)]
    prompts.write_text("\n".join(lines) + "\n")

    def medusa(*words: str) -> str:
        ended = CliRunner().invoke(create_cli(), [*words, "--model", str(checkpoint)])
        assert ended.exit_code == 0, ended.output
        return ended.output

    assert "24 answers" in medusa("distill", "--prompts", str(prompts), "--out", str(answers), "--max-tokens", "12")
    assert "medusa serve" in medusa(
        "train", "--data", str(answers), "--out", str(heads), "--heads", "2", "--epochs", "1"
    )
    assert "tokens per step" in medusa(
        "generate", "Hello", "--heads", str(heads), "--max-tokens", "8", "--threads", "1"
    )


def test_clients_can_tell_an_adapter_from_the_untouched_base(server: Running, bare: Running) -> None:
    found = [(each.get("/v1/models").json()["data"][0]["adapter"], complete(each)) for each in (bare, server)]

    (merged, adapted), (left_out, untouched) = found
    assert (merged, left_out) == (True, False)
    assert adapted["system_fingerprint"] != untouched["system_fingerprint"]
    assert adapted["choices"][0]["text"] != untouched["choices"][0]["text"]
    assert untouched["speculation"]["drafted"] > 0


def test_trees_can_be_left_to_the_heads(bare: Running) -> None:
    assert complete(bare)["speculation"]["by_source"].keys() == {"heads"}
