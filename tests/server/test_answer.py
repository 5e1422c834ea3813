from collections.abc import Callable

import pytest

from medusa_core.text import TextCodec
from server.answer import Answer, Echo, Piece, Tally
from server.metrics import Metrics
from server.token_scores import ScoredToken
from server.worker.messages import FinishReason, PromptStats, StepStats, TokenDelta, TokenLogprobs, WorkerInfo
from tests.tiny_tokenizers import save_byte_level

INFO = WorkerInfo(
    "demo", "cpu", "float32", 100, 300, [1], 4, None, 8, 8, 0.005, {}, "dynamic", "as asked for", "none", None
)
PROMPT = PromptStats(5, 2, 0.1, None)
# in the tiny tokenizer "!" is 2, '"' is 3, "#" is 4 and so on


def step(*tokens: int, accepted: int = 2, reason: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(1, list(tokens), None, StepStats({"heads": 7}, ["heads"] * accepted, [], 0.01, {}), reason, None)


def first(token: int, reason: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(1, [token], PROMPT, None, reason, None)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(str(save_byte_level(tmp_path_factory.mktemp("tiny"))))


def tally(metrics: Metrics) -> Tally:
    return Tally(metrics.of_model(INFO), "tree", "chat", 0.0)


@pytest.fixture
def answer(codec: TextCodec) -> Callable[..., Answer]:
    def make(*stop: str) -> Answer:
        return Answer(codec.stream(stop), tally(Metrics("demo", 1)), None, False, None)

    return make


def test_the_stop_token_is_counted_and_not_shown(answer: Callable[..., Answer]) -> None:
    one = answer()
    pieces = [one.take(first(2)), one.take(step(3, 4, 5)), one.take(step(6, 1, reason="stop")), one.rest()]

    assert "".join(piece.text for piece in pieces) == '!"#$%'
    assert one.finish_reason == "stop"
    assert one.tally.usage()["completion_tokens"] == 6
    assert one.tally.usage()["prompt_tokens_details"] == {"cached_tokens": 2}


def test_a_stop_string_across_two_steps_never_leaks(answer: Callable[..., Answer]) -> None:
    one = answer("$%&")
    pieces = [one.take(first(2)), one.take(step(3, 4, 5)), one.take(step(6, 7, 8))]

    assert [piece.text for piece in pieces] == ["!", '"#', ""]
    assert one.finish_reason == "stop"
    assert one.rest() == Piece("", None)
    # ! " # $ % & and not the ' that came in the same step
    assert one.tally.usage()["completion_tokens"] == 6


def test_a_cut_step_counts_what_was_delivered(answer: Callable[..., Answer]) -> None:
    one = answer("$")
    one.take(first(2))
    one.take(step(3, accepted=0))
    one.take(step(4, 5, 6, 7, accepted=3))

    assert one.tally.speculation() == {
        "steps": 2,
        "tokens_per_step": 1.5,
        "acceptance_lengths": [1, 0, 1],
        "drafted": 14,
        "accepted": 2,
        "by_source": {"heads": {"drafted": 14, "accepted": 2}},
    }


def test_sources_add_up_to_the_totals_also_when_a_step_is_cut(answer: Callable[..., Answer]) -> None:
    one = answer("$")
    one.take(first(2))
    mixed = StepStats({"heads": 5, "lookup": 2}, ["heads", "lookup", "lookup"], [], 0.01, {})
    one.take(TokenDelta(1, [3, 4, 5, 6], None, mixed, None, None))
    one.take(TokenDelta(1, [7, 8], None, StepStats({"heads": 7}, ["heads"], [], 0.01, {}), None, None))

    found = one.tally.speculation()

    # " # $ were delivered: the first and the second draft, and the third, which completed the stop string
    assert found["by_source"] == {"heads": {"drafted": 5, "accepted": 1}, "lookup": {"drafted": 2, "accepted": 2}}
    assert (found["drafted"], found["accepted"], found["steps"]) == (7, 3, 1)


def test_an_answer_of_one_token_has_no_tokens_per_step(answer: Callable[..., Answer]) -> None:
    one = answer()
    one.take(first(2, reason="length"))

    assert one.tally.speculation()["steps"] == 0
    assert one.tally.speculation()["tokens_per_step"] is None
    assert one.tally.speculation()["acceptance_lengths"] == []


def test_an_answer_is_closed_once(codec: TextCodec) -> None:
    metrics = Metrics("demo", 1)
    one = Answer(codec.stream(), tally(metrics), None, False, None)
    one.take(first(2, reason="length"))
    one.tally.close("length")
    one.tally.close("abort")

    assert one.tally.outcome == "length"
    assert b'{endpoint="chat",finish_reason="length",model_name="demo"} 1.0' in metrics.expose()
    assert b'{endpoint="chat",finish_reason="abort",model_name="demo"} 0.0' in metrics.expose()


def score(logprob: float) -> TokenLogprobs:
    return TokenLogprobs(logprob, [])


def scored(codec: TextCodec, *stop: str, echo: Echo | None = None) -> Answer:
    return Answer(codec.stream(stop), tally(Metrics("demo", 1)), echo, True, None)


def test_scores_end_where_the_answer_ends_and_skip_the_stop_token(codec: TextCodec) -> None:
    one, stopped = scored(codec), scored(codec, "$")
    ended = TokenDelta(1, [2, 3, 1], PROMPT, None, "stop", [score(-1), score(-2), score(-3)])
    cut = TokenDelta(1, [2, 5, 6], PROMPT, None, None, [score(-1), score(-2), score(-3)])

    assert one.take(ended).tokens == (ScoredToken(2, 0, score(-1)), ScoredToken(3, 1, score(-2)))
    assert stopped.take(cut) == Piece("!", (ScoredToken(2, 0, score(-1)), ScoredToken(5, 1, score(-2))))


def test_an_echo_comes_first_and_moves_the_offsets(codec: TextCodec) -> None:
    one = scored(codec, echo=Echo("#$", (4, 5), (0, 1)))
    prompt = PromptStats(2, 0, 0.1, [score(-7)])

    found = one.take(TokenDelta(1, [2], prompt, None, None, [score(-1)]))

    assert found == Piece("#$!", (ScoredToken(4, 0, None), ScoredToken(5, 1, score(-7)), ScoredToken(2, 2, score(-1))))
    last = TokenDelta(1, [3], None, StepStats({"heads": 7}, [], [], 0.01, {}), "length", [score(-2)])
    assert one.take(last).tokens == (ScoredToken(3, 3, score(-2)),)


def test_an_echo_without_scores_is_text(codec: TextCodec) -> None:
    one = Answer(codec.stream(), tally(Metrics("demo", 1)), Echo("#$", (4, 5), (0, 1)), False, None)

    assert one.take(first(2)) == Piece("#$!", None)
    assert one.take(step(3, accepted=0)) == Piece('"', None)


def test_a_prompt_is_paid_once_and_its_scores_serve_all_its_answers(codec: TextCodec) -> None:
    shared, echo = tally(Metrics("demo", 1)), Echo("#$", (4, 5), (0, 1))
    eldest = Answer(codec.stream(), shared, echo, True, None)
    younger = Answer(codec.stream(), shared, echo, True, eldest)
    eldest.take(TokenDelta(1, [2], PromptStats(2, 0, 0.1, [score(-7)]), None, "length", [score(-1)]))

    found = younger.take(TokenDelta(2, [3], PromptStats(2, 2, 0.1, None), None, "length", [score(-2)]))

    assert found.tokens == (ScoredToken(4, 0, None), ScoredToken(5, 1, score(-7)), ScoredToken(3, 2, score(-2)))
    assert shared.usage() == {
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_the_likelier_answer_has_more_nats_per_token(codec: TextCodec) -> None:
    one = scored(codec)
    one.take(TokenDelta(1, [2, 3], PROMPT, None, "length", [score(-1), score(-2)]))

    assert one.mean_logprob == -1.5
