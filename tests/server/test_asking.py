from pathlib import Path
from typing import Any

import msgspec
import pytest

from medusa_core.errors import InvalidParameter, PromptTooLong
from medusa_core.text import TextCodec
from server.answer import Echo
from server.asking import Wanted, check_length, check_prompt, check_scores, several, to_generate
from server.schemas.completions import CompletionRequest
from server.worker.messages import WorkerInfo
from tests.server.worker_info import INFO
from tests.tiny_tokenizers import save_byte_level


def test_adjustments_reach_the_worker_and_default_to_the_models_or_none() -> None:
    asked = {"logit_bias": {"5": 2, "7": -100.0}, "presence_penalty": 0.5, "frequency_penalty": -1, "min_tokens": 2**60}
    body = CompletionRequest.model_validate({"model": "demo", "prompt": "x", **asked})
    plain = CompletionRequest.model_validate({"model": "demo", "prompt": "x"})
    repeats_less = msgspec.structs.replace(INFO, default_sampling={"repetition_penalty": 1.05})

    sampling = to_generate(body, [2], None, INFO, None, False, None, []).sampling
    assert sampling.logit_bias == [(5, 2.0), (7, -100.0)]
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -1.0, 1.0)
    assert sampling.min_tokens == INFO.max_context
    assert to_generate(plain, [2], None, INFO, None, False, None, []).sampling.logit_bias == []
    assert to_generate(plain, [2], None, repeats_less, None, False, None, []).sampling.repetition_penalty == 1.05


@pytest.mark.parametrize(
    ("prompt", "error"),
    [([], InvalidParameter), ([5] * 100, PromptTooLong), ([300], InvalidParameter), ([-1], InvalidParameter)],
)
def test_a_prompt_the_engine_would_refuse_never_waits(prompt: list[int], error: type[Exception]) -> None:
    with pytest.raises(error):
        check_prompt(prompt, None, INFO, "prompt")


def test_a_prompt_that_leaves_room_for_one_token_is_taken() -> None:
    check_prompt([299] * 99, 10**9, INFO, "prompt")


def body(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": "p", **fields})


def test_sampling_that_is_left_out_or_null_comes_from_the_model() -> None:
    for sampling in (
        to_generate(body(), [2], 5, INFO, None, False, None, []).sampling,
        to_generate(
            body(temperature=None, top_p=None, top_k=None, min_p=None), [2], 5, INFO, None, False, None, []
        ).sampling,
    ):
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.6, 0.9, 20, 0.1)
        assert sampling.seed is None


def test_zero_is_a_value_and_not_absence() -> None:
    sampling = to_generate(
        body(temperature=0, top_p=0, top_k=0, min_p=0, seed=0), [2], 5, INFO, None, False, None, []
    ).sampling

    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (0, 0, None, 0, 0)


def test_a_model_without_opinions_samples_plainly() -> None:
    plain = WorkerInfo(
        "demo", "cpu", "float32", 100, 300, [1], 4, None, 8, 8, 0.005, {}, "dynamic", "as asked for", "none", None
    )
    sampling = to_generate(body(), [2], 5, plain, None, False, None, []).sampling

    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, None, 0.0)


def test_speculation_reaches_the_worker_with_the_engines_defaults() -> None:
    asked = body(speculation={"mode": "chain", "max_nodes": 4})
    speculation = to_generate(asked, [2], 5, INFO, None, False, None, []).speculation

    assert (speculation.mode, speculation.max_nodes, speculation.acceptance) == ("chain", 4, "exact")
    assert (speculation.epsilon, speculation.delta) == (0.09, 0.3)


def test_answers_to_one_prompt_differ_by_their_choice_and_the_first_scores_the_prompt() -> None:
    asked = to_generate(body(seed=7), [2], 5, INFO, 0, True, None, [])

    wanted = several(asked, 3, lambda: None, None, first=4)  # type: ignore[arg-type, return-value]

    assert [one.generate.sampling.choice for one in wanted] == [0, 1, 2]
    assert {one.generate.sampling.seed for one in wanted} == {7}
    assert [one.generate.score_prompt for one in wanted] == [True, False, False]
    assert {one.first for one in wanted} == {4}


def test_text_that_cannot_fit_is_refused_before_it_is_tokenized(tmp_path: Path) -> None:
    codec = TextCodec.load(str(save_byte_level(tmp_path)))
    longest = INFO.max_context * codec.longest_token

    check_length(["x" * (longest - 1)], 5, codec, INFO, "prompt")
    with pytest.raises(PromptTooLong, match="maximum context length is 100 tokens") as refused:
        check_length(["x" * (longest - 9), "y" * 9], 5, codec, INFO, "prompt")
    assert refused.value.param == "prompt"


def test_a_response_carries_a_bounded_number_of_log_probabilities() -> None:
    def wanted(count: int, top_logprobs: int | None) -> list[Wanted]:
        generate = to_generate(body(), [2] * 50, None, INFO, top_logprobs, True, None, [])
        return several(generate, count, lambda: None, Echo("", (), ()), first=0)  # type: ignore[arg-type, return-value]

    check_scores(wanted(128, 20), INFO)
    check_scores(wanted(20_000, None), INFO)
    with pytest.raises(InvalidParameter, match="2100000 log-probabilities, at most 2000000") as refused:
        check_scores(wanted(1000, 20), INFO)
    assert refused.value.param == "logprobs"
