import threading
import time
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, InternalServerError, RateLimitError

from tests.server import fake_engine
from tests.server.running import ENDLESS, MODEL, Running, running


@pytest.fixture
def one_seat(tmp_path: Path) -> Any:
    """A server whose queue holds one request."""
    with running(tmp_path, queue_size=1) as server:
        yield server


def test_a_client_that_leaves_a_stream_frees_the_worker(one_seat: Running) -> None:
    with one_seat.busy():
        pass

    # the answer would hold it for two and a half seconds
    one_seat.wait_for("medusa_num_requests_running", 0, within_s=1)
    assert one_seat.metrics()["medusa_requests_cancelled_total stage=decode"] == 1
    assert one_seat.metrics()["medusa_requests_total endpoint=completions finish_reason=abort"] == 1


def test_a_client_that_leaves_a_plain_request_frees_the_worker(one_seat: Running) -> None:
    with one_seat.asked(ENDLESS):
        one_seat.wait_for("medusa_num_requests_running", 1)
        time.sleep(0.2)  # a prompt takes this engine no time

    one_seat.wait_for("medusa_num_requests_running", 0, within_s=1)
    assert one_seat.metrics()["medusa_requests_cancelled_total stage=decode"] == 1


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_client_that_leaves_during_prefill_frees_the_worker(one_seat: Running, is_streaming: bool) -> None:
    body = {**ENDLESS, "seed": fake_engine.LONG_PREFILL, "stream": is_streaming}
    with one_seat.asked(body):
        one_seat.wait_for("medusa_num_requests_running", 1)

    one_seat.wait_for("medusa_num_requests_running", 0, within_s=1)
    assert one_seat.metrics()["medusa_requests_cancelled_total stage=prefill"] == 1
    assert one_seat.metrics()["medusa_generation_tokens_total"] == 0


def test_a_stop_string_frees_the_worker(one_seat: Running) -> None:
    with one_seat.openai() as client:
        answer = client.completions.create(**{**ENDLESS, "stop": "world"})  # type: ignore[call-overload]

    assert answer.choices[0].text == "Hello "
    one_seat.wait_for("medusa_num_requests_running", 0, within_s=1)
    assert one_seat.metrics()["medusa_requests_cancelled_total stage=decode"] == 0


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_client_that_leaves_the_queue_loses_its_place(one_seat: Running, is_streaming: bool) -> None:
    with one_seat.busy():
        with one_seat.asked({**ENDLESS, "stream": is_streaming}):
            one_seat.wait_for("medusa_num_requests_waiting", 1)

        one_seat.wait_for("medusa_num_requests_waiting", 0)
        assert one_seat.metrics()["medusa_requests_cancelled_total stage=queued"] == 1


def test_a_full_queue_is_a_429_that_says_when_to_come_back(one_seat: Running) -> None:
    with one_seat.busy():
        waiting = threading.Thread(
            target=lambda: one_seat.post("/v1/completions", {"model": MODEL, "prompt": "I wait my turn"})
        )
        waiting.start()
        one_seat.wait_for("medusa_num_requests_waiting", 1)

        with one_seat.openai() as client, pytest.raises(RateLimitError) as caught:
            client.completions.create(model=MODEL, prompt="one too many", stream=True)

        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert one_seat.metrics()["medusa_requests_rejected_total reason=queue_full"] == 1
    waiting.join()
    assert one_seat.metrics()["medusa_requests_total endpoint=completions finish_reason=stop"] == 1


TIMED_OUT = "medusa_requests_total endpoint=completions finish_reason=timeout"


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_request_whose_turn_does_not_come_in_time_loses_its_place(one_seat: Running, is_streaming: bool) -> None:
    with one_seat.busy() as lines:
        refused = one_seat.post("/v1/completions", {**ENDLESS, "timeout_s": 0.2, "stream": is_streaming})

        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "deadline_exceeded_in_queue"
        assert int(refused.headers["retry-after"]) >= 1
        metrics = one_seat.metrics()
        assert (metrics["medusa_num_requests_waiting"], metrics[TIMED_OUT]) == (0, 1)
        assert next(lines) is not None


@pytest.mark.parametrize("seed", [fake_engine.ENDLESS, fake_engine.LONG_PREFILL])
def test_an_answer_that_takes_too_long_frees_the_worker_and_is_not_to_be_asked_for_again(
    one_seat: Running, seed: int
) -> None:
    refused = one_seat.post("/v1/completions", {**ENDLESS, "seed": seed, "timeout_s": 0.3})

    assert refused.status_code == 504
    assert refused.json()["error"]["code"] == "deadline_exceeded"
    assert "0.3 s" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    one_seat.wait_for("medusa_num_requests_running", 0, within_s=1)
    metrics = one_seat.metrics()
    assert metrics[TIMED_OUT] == 1
    assert metrics["medusa_requests_cancelled_total stage=decode"] == 0
    assert one_seat.post("/v1/completions", {"model": MODEL, "prompt": "Hello"}).status_code == 200


def test_a_stream_that_takes_too_long_ends_with_an_error_event(one_seat: Running) -> None:
    answer = one_seat.post("/v1/completions", {**ENDLESS, "n": 2, "timeout_s": 0.3, "stream": True})
    *pieces, error, done = [line for line in answer.text.split("\n") if line]

    assert answer.status_code == 200
    assert len(pieces) > 1
    assert '"code":"deadline_exceeded"' in error
    assert done == "data: [DONE]"
    one_seat.wait_for("medusa_num_requests_running", 0, within_s=1)
    assert one_seat.metrics()[TIMED_OUT] == 1


def test_a_request_can_only_shorten_the_time_it_is_given(tmp_path: Path) -> None:
    with running(tmp_path, request_timeout_s=0.3) as server:
        for asked in ({}, {"timeout_s": None}, {"timeout_s": 1e9}):
            assert server.post("/v1/completions", {**ENDLESS, **asked}).status_code == 504
        quick = {"model": MODEL, "prompt": "Hello", "timeout_s": 1e9}
        assert server.post("/v1/completions", quick).status_code == 200


def test_other_routes_answer_while_the_worker_is_busy(one_seat: Running) -> None:
    with one_seat.busy():
        began = time.monotonic()

        assert one_seat.get("/v1/models").status_code == 200
        assert one_seat.get("/ready").status_code == 200
        assert time.monotonic() - began < 1


def test_a_request_the_engine_refuses_is_the_engines_error_by_name(server: Running) -> None:
    body = {"model": MODEL, "prompt": "hi", "seed": fake_engine.REFUSE}
    for is_streaming in (False, True):
        answer = server.post("/v1/completions", {**body, "stream": is_streaming})
        assert answer.status_code == 400
        assert answer.json()["error"] == {
            "message": "the engine does not like this seed",
            "type": "invalid_request_error",
            "param": "seed",
            "code": "invalid_value",
        }


def test_a_failing_step_is_an_error_and_the_worker_lives_on(server: Running) -> None:
    pid = server.worker.pid
    with server.openai() as client:
        with pytest.raises(InternalServerError, match="kernel"):
            client.completions.create(model=MODEL, prompt="Hello", seed=fake_engine.FAIL)
        with pytest.raises(APIError, match="kernel"):
            list(client.completions.create(model=MODEL, prompt="Hello", seed=fake_engine.FAIL, stream=True))
        assert client.completions.create(model=MODEL, prompt="Hello").choices[0].text == "Hello"
    assert server.worker.pid == pid


def test_an_error_in_mid_stream_is_an_event_then_done(server: Running) -> None:
    body = {"model": MODEL, "prompt": "Hello world", "seed": fake_engine.FAIL, "stream": True}
    answer = server.post("/v1/completions", body)
    *_, error, done = [line for line in answer.text.split("\n") if line]

    assert answer.status_code == 200
    assert error.startswith('data: {"error":{"message":"the engine failed')
    assert done == "data: [DONE]"
