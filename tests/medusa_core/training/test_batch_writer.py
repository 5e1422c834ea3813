from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from medusa_core.errors import ConfigurationError
from medusa_core.sampling import SamplingParams
from medusa_core.training.batch_writer import BatchWriter
from medusa_core.training.writer import Question
from tests.cast import tiny_model

GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=1.0)
QUESTIONS = [
    Question((5, 6, 7), 20, seed=1),
    Question((8,), 20, seed=2),
    Question((0, 0, 9, 10, 11, 12, 13), 20, seed=3),  # token 0, which pads, is a token like any other
    Question((8,), 5, seed=2),
]


def writer(sampling: SamplingParams, ends: Sequence[int] = (), family: str = "llama") -> BatchWriter:
    return BatchWriter(ordinary(family), frozenset(ends), sampling)


def ordinary(family: str) -> Any:
    """A tiny model with the attention of its own library, as it is loaded to write in batches."""
    model: Any = tiny_model(family, eos_token_id=None)
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_neox"])
def test_greedy_answers_are_those_of_the_model_alone(family: str) -> None:
    own, model = writer(GREEDY, family=family), ordinary(family)

    for question, answer in zip(QUESTIONS, own.write(QUESTIONS), strict=True):
        prompt = torch.tensor([question.tokens])
        expected = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=question.max_tokens, do_sample=False
        )
        assert answer == expected[0, len(question.tokens) :].tolist()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_an_answer_does_not_depend_on_its_batch(sampling: SamplingParams) -> None:
    own = writer(sampling)

    assert own.write(QUESTIONS) == [own.write([question])[0] for question in QUESTIONS]


def test_an_answer_goes_on_when_others_have_left_the_batch() -> None:
    own = writer(SAMPLED)
    batch = [replace(question, max_tokens=limit) for question, limit in zip(QUESTIONS, (2, 5, 3, 20), strict=True)]

    assert own.write(batch)[3] == own.write(batch[3:])[0]


def test_an_answer_depends_on_its_own_seed() -> None:
    own = writer(SAMPLED)
    asked = QUESTIONS[0]

    first, again, other = own.write([asked, asked, replace(asked, seed=9)])

    assert first == again != other


def test_an_answer_ends_with_its_first_end_token_or_at_its_own_limit() -> None:
    free = writer(GREEDY).write(QUESTIONS)
    end = free[0][3]

    ended = writer(GREEDY, [end]).write(QUESTIONS)

    for answer, whole in zip(ended, free, strict=True):
        assert answer == (whole[: whole.index(end) + 1] if end in whole else whole)
    assert [len(answer) for answer in free] == [20, 20, 20, 5]


def test_the_models_own_end_tokens_count_too() -> None:
    model = tiny_model("llama")
    generation: Any = model.generation_config
    generation.eos_token_id = [4, 5]

    assert BatchWriter(model, frozenset([7]), GREEDY).ends == {4, 5, 7}


def test_a_batch_that_does_not_fit_is_told_what_to_do() -> None:
    model: Any = tiny_model("llama")

    def exhausted(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(exhausted)
    with pytest.raises(ConfigurationError, match=r"4 answers at once, of up to 27 tokens.*lower the batch size"):
        BatchWriter(model, frozenset(), GREEDY).write(QUESTIONS)
