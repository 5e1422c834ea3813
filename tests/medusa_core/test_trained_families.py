"""From training data to answers, for tiny models of several families that have learnt to count."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from medusa_core.config import EngineConfig, SpeculationMode, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.generation import Delta, GenerationRequest
from medusa_core.sampling import SamplingParams
from medusa_core.training.plan import JointPlan, TrainPlan
from medusa_core.training.trainer import BaseOptions, train
from tests.cast import GREEDY, tiny_model
from tests.medusa_core.training.cast import tokenizer

SIGNS = "0123456789!#$%&*+,-./:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # a token each
LENGTH, STARTS = 24, (7, 30, 44)
SAMPLED = SamplingParams(temperature=1.0, seed=3)
HEADS = TrainPlan(
    num_heads=2,
    epochs=4,
    learning_rate=2e-2,
    warmup_steps=4,
    max_length=LENGTH,
    rows_per_pass=4,
    passes_per_step=1,
    held_out_percent=15.0,
)
# What is asked of the base's perplexity is tested elsewhere; so few examples say little about it.
JOINT = JointPlan(adapter_rank=4, epochs=2, learning_rate=2e-3, max_perplexity_percent=20.0)


@dataclass(frozen=True)
class Case:
    family: str
    plan: TrainPlan
    joint: JointPlan | None = None


CASES = (
    Case("llama", HEADS),
    Case("qwen3", replace(HEADS, shared_lm_head=False)),
    Case("gemma2", replace(HEADS, lm_head_rank=4), JOINT),
    Case("phi3", replace(HEADS, shared_lm_head=False, num_layers=2), JOINT),
)


def counting(start: int, length: int = LENGTH) -> str:
    """Signs one after the other; none twice, so nothing can be looked up."""
    return "".join(SIGNS[(start + step) % len(SIGNS)] for step in range(length))


def learn_to_count(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    model.set_attn_implementation("eager")  # many texts at once
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        logits = model(input_ids=tokens).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def answer(engine: Engine, prompt: list[int], sampling: SamplingParams, mode: SpeculationMode) -> list[Delta]:
    asked = GenerationRequest(tuple(prompt), sampling, SpeculationParams(mode), max_tokens=16, ignore_eos=True)
    return list(engine.generate(asked))


def tokens_of(deltas: Sequence[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.family)
def test_a_family_is_trained_and_answers_in_fewer_steps_what_it_answers_plainly(case: Case, tmp_path: Path) -> None:
    own, folder, data = tokenizer(), tmp_path / "model", tmp_path / "counting.jsonl"
    texts = [counting(start) for start in range(len(SIGNS))]
    model = tiny_model(case.family, vocab_size=len(own), initializer_range=0.1)
    learn_to_count(model, torch.tensor([own(text)["input_ids"] for text in texts]))
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    trained = train(BaseOptions(str(folder), "cpu"), data, tmp_path / "heads", case.plan, case.joint)

    assert trained is not None, "it leads"
    config = EngineConfig(
        str(folder),
        str(trained.heads),
        "cpu",
        "float32",
        tree_nodes=8,
        prompt_lookup=False,
        recycling=False,
        self_test=False,
    )
    engine = Engine.load(config)
    assert (engine.info.adapter is not None) == (case.joint is not None)
    for sampling, prompt in product((GREEDY, SAMPLED), (own(counting(start, 6))["input_ids"] for start in STARTS)):
        drafted, plain = (answer(engine, prompt, sampling, mode) for mode in ("tree", "off"))
        assert tokens_of(drafted) == tokens_of(plain)
        accepted = [step.accepted for delta in drafted if (step := delta.step) is not None]
        assert sum(map(len, accepted)) > len(accepted), "a step accepts more than one drafted token on average"
