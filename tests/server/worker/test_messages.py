import msgspec
import pytest

from server.worker.messages import (
    Cancel,
    Done,
    DraftedNode,
    Failed,
    Generate,
    Load,
    Progress,
    PromptStats,
    RemoteError,
    Sampling,
    Shutdown,
    Speculation,
    StepDetail,
    StepStats,
    TokenDelta,
    TokenLogprobs,
    decode_from_worker,
    decode_to_worker,
    encode,
)
from tests.server.worker_info import LOAD

STEP = StepStats({"heads": 7}, [], [True], 0.1, {"verify": 0.05})
NODES = [DraftedNode(6, None, 0, None, None, 1.0), DraftedNode(7, 0, 1, "heads", 2, 0.125)]
WATCHED = msgspec.structs.replace(STEP, detail=StepDetail(NODES, [1], [7, 8]))
GENERATE = Generate(
    id=1,
    prompt=[0, 2**31],
    sampling=Sampling(0.7, 1.0, None, 0.0, 2**64 - 1, 2, 1.1, 0.5, -0.5, [(2**31, -100.0)], 3),
    speculation=Speculation("auto", None, "exact", 0.09, 0.3),
    max_tokens=None,
    stop_token_ids=[],
    ignore_eos=False,
    top_logprobs=5,
    score_prompt=True,
    grammar='{"grammars": []}',
    prediction=[4, 5],
    cache_salt="a",
)


@pytest.mark.parametrize(
    "message",
    [
        LOAD,
        GENERATE,
        Cancel(2**40),
        Shutdown(),
    ],
)
def test_what_is_sent_to_the_worker_arrives_unchanged(message: Load | Generate | Cancel | Shutdown) -> None:
    assert decode_to_worker(encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Progress("loading", 0.5),
        TokenDelta(1, [5, 6], PromptStats(3, 0, 0.1, None), None, None, None),
        TokenDelta(1, [7], None, STEP, "stop", [TokenLogprobs(-0.25, [(7, -0.25)])]),
        TokenDelta(1, [7, 8], None, WATCHED, None, None),
        Done(1),
        Failed(1, RemoteError("EngineError", "no", None)),
    ],
)
def test_what_the_worker_sends_arrives_unchanged(message: Progress | TokenDelta | Done | Failed) -> None:
    assert decode_from_worker(encode(message)) == message


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_from_worker(encode(GENERATE))


def test_a_delta_of_four_tokens_is_small() -> None:
    step = StepStats({"heads": 15}, ["heads"] * 3, [], 0.01, {})

    assert len(encode(TokenDelta(1, [30000] * 4, None, step, None, None))) < 120
