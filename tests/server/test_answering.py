import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from starlette.types import Message

from medusa_core.errors import InvalidParameter, PromptTooLong
from medusa_core.text import TextCodec
from server.answering import Answer, ClientGone, check_prompt, to_generate, unless_gone
from server.metrics import Metrics
from server.schemas.completions import CompletionRequest
from server.worker.messages import FinishReason, PromptStats, StepStats, TokenDelta, WorkerInfo
from tests.tiny_tokenizers import save_byte_level

INFO = WorkerInfo(
    "demo",
    "cpu",
    "float32",
    100,
    300,
    [1],
    4,
    None,
    8,
    8,
    {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1},
)
PROMPT = PromptStats(5, 2, 0.1)
# in the tiny tokenizer "!" is 2, '"' is 3, "#" is 4 and so on


def step(*tokens: int, accepted: int = 2, reason: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(1, list(tokens), None, StepStats(7, accepted, 0.01), reason)


def first(token: int, reason: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(1, [token], PROMPT, None, reason)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(str(save_byte_level(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture
def answer(codec: TextCodec) -> Callable[..., Answer]:
    def make(*stop: str) -> Answer:
        return Answer(codec.stream(stop), Metrics("demo", 1).of_model(INFO), "tree", "chat", 0.0)

    return make


def test_adjustments_reach_the_worker_and_default_to_the_models_or_none() -> None:
    asked = {"logit_bias": {"5": 2, "7": -100.0}, "presence_penalty": 0.5, "frequency_penalty": -1, "min_tokens": 2**60}
    body = CompletionRequest.model_validate({"model": "demo", "prompt": "x", **asked})
    plain = CompletionRequest.model_validate({"model": "demo", "prompt": "x"})
    repeats_less = msgspec.structs.replace(INFO, default_sampling={"repetition_penalty": 1.05})

    sampling = to_generate(body, [2], None, INFO).sampling
    assert sampling.logit_bias == [(5, 2.0), (7, -100.0)]
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -1.0, 1.0)
    assert sampling.min_tokens == INFO.max_context
    assert to_generate(plain, [2], None, INFO).sampling.logit_bias == []
    assert to_generate(plain, [2], None, repeats_less).sampling.repetition_penalty == 1.05


def test_the_stop_token_is_counted_and_not_shown(answer: Callable[..., Answer]) -> None:
    one = answer()
    texts = [one.take(first(2)), one.take(step(3, 4, 5)), one.take(step(6, 1, reason="stop")), one.rest()]

    assert "".join(texts) == '!"#$%'
    assert one.finish_reason == "stop"
    assert one.usage()["completion_tokens"] == 6
    assert one.usage()["prompt_tokens_details"] == {"cached_tokens": 2}


def test_a_stop_string_across_two_steps_never_leaks(answer: Callable[..., Answer]) -> None:
    one = answer("$%&")
    texts = [one.take(first(2)), one.take(step(3, 4, 5)), one.take(step(6, 7, 8))]

    assert texts == ["!", '"#', ""]
    assert one.finish_reason == "stop"
    assert one.rest() == ""
    # ! " # $ % & and not the ' that came in the same step
    assert one.usage()["completion_tokens"] == 6


def test_a_cut_step_counts_what_was_delivered(answer: Callable[..., Answer]) -> None:
    one = answer("$")
    one.take(first(2))
    one.take(step(3, accepted=0))
    one.take(step(4, 5, 6, 7, accepted=3))

    assert one.speculation() == {
        "steps": 2,
        "tokens_per_step": 1.5,
        "acceptance_lengths": [1, 0, 1],
        "drafted": 14,
        "accepted": 2,
        "by_source": {"heads": {"drafted": 14, "accepted": 2}},
    }


def test_an_answer_of_one_token_has_no_tokens_per_step(answer: Callable[..., Answer]) -> None:
    one = answer()
    one.take(first(2, reason="length"))

    assert one.speculation()["steps"] == 0
    assert one.speculation()["tokens_per_step"] is None
    assert one.speculation()["acceptance_lengths"] == []


def test_an_answer_is_closed_once(codec: TextCodec) -> None:
    metrics = Metrics("demo", 1)
    one = Answer(codec.stream(), metrics.of_model(INFO), "tree", "chat", 0.0)
    one.take(first(2, reason="length"))
    one.close("length")
    one.close("abort")

    assert b'finish_reason="length"' in metrics.expose()
    assert b'finish_reason="abort"' not in metrics.expose()


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
        to_generate(body(), [2], 5, INFO).sampling,
        to_generate(body(temperature=None, top_p=None, top_k=None, min_p=None), [2], 5, INFO).sampling,
    ):
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.6, 0.9, 20, 0.1)
        assert sampling.seed is None


def test_zero_is_a_value_and_not_absence() -> None:
    sampling = to_generate(body(temperature=0, top_p=0, top_k=0, min_p=0, seed=0), [2], 5, INFO).sampling

    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (0, 0, None, 0, 0)


def test_a_model_without_opinions_samples_plainly() -> None:
    plain = WorkerInfo("demo", "cpu", "float32", 100, 300, [1], 4, None, 8, 8, {})
    sampling = to_generate(body(), [2], 5, plain).sampling

    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, None, 0.0)


def test_speculation_reaches_the_worker_with_the_engines_defaults() -> None:
    speculation = to_generate(body(speculation={"mode": "chain", "max_nodes": 4}), [2], 5, INFO).speculation

    assert (speculation.mode, speculation.max_nodes, speculation.acceptance) == ("chain", 4, "exact")
    assert (speculation.epsilon, speculation.delta) == (0.09, 0.3)


def test_work_ends_when_the_client_leaves() -> None:
    async def scene() -> bool:
        was_cancelled = False

        async def work() -> None:
            nonlocal was_cancelled
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                was_cancelled = True
                raise

        async def receive() -> Message:
            await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        with pytest.raises(ClientGone):
            await unless_gone(receive, work())
        return was_cancelled

    assert asyncio.run(scene())


def test_work_that_ends_first_gives_its_result_or_its_error() -> None:
    async def scene() -> None:
        async def receive() -> Message:
            await asyncio.sleep(10)
            raise AssertionError

        async def fail() -> None:
            raise InvalidParameter("no")

        assert await unless_gone(receive, asyncio.sleep(0, "done")) == "done"
        with pytest.raises(InvalidParameter):
            await unless_gone(receive, fail())

    asyncio.run(scene())
