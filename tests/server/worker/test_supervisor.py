import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import fake_engine
from tests.server.running import MODEL, Running, running

HELLO = {"model": MODEL, "prompt": "Hello"}
# Seconds without a sign of life that tests wait for; a busy machine may keep an idle worker from giving one for half.
PATIENCE_S = 3


@contextmanager
def waiting(server: Running, body: dict[str, Any], place: int = 1) -> Iterator[list[httpx.Response]]:
    """A request in the queue behind another; its answer is in the list when the block has ended."""
    found: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: found.append(server.post("/v1/completions", body)))
    thread.start()
    server.wait_for("medusa_num_requests_waiting", place)
    yield found
    thread.join()


def pid_of(server: Running) -> int:
    assert server.worker.pid is not None
    return server.worker.pid


def restarts(server: Running) -> dict[str, float]:
    """Restarts by reason, those that have not happened left out."""
    prefix = "medusa_worker_restarts_total reason="
    found = {name.removeprefix(prefix): value for name, value in server.metrics().items() if name.startswith(prefix)}
    return {reason: count for reason, count in found.items() if count > 0}


def answers_again(server: Running) -> bool:
    """Wait for the next worker; whether it answers as the first did."""
    server.wait_for("medusa_worker_up", 1, within_s=20)
    answer = server.post("/v1/completions", HELLO)
    return answer.status_code == 200 and answer.json()["choices"][0]["text"] == "Hello"


def health(server: Running) -> dict[str, Any]:
    found: dict[str, Any] = server.get("/health").json()
    return found


def test_a_worker_that_is_killed_is_replaced_and_the_waiting_are_kept(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        with server.busy() as lines, waiting(server, {"model": MODEL, "prompt": "I wait"}) as kept:
            os.kill(pid_of(server), signal.SIGKILL)

            events = [line for line in lines if line]
            assert '"code":"worker_died"' in events[-2] and "no memory left" in events[-2]
            assert events[-1] == "data: [DONE]"
            assert health(server)["state"] == "restarting"
            refused = server.post("/v1/completions", HELLO)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert kept[0].json()["choices"][0]["text"] == "I wait"
        metrics = server.metrics()
        # nobody but the kernel kills a worker unasked
        assert restarts(server) == {"oom": 1}
        assert metrics["medusa_worker_up"] == 1
        assert metrics["medusa_requests_total endpoint=completions finish_reason=error"] == 1


def test_a_worker_that_is_killed_while_idle_is_replaced_at_once_and_again(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for count in (1, 2):
            before = pid_of(server)
            os.kill(before, signal.SIGKILL)
            server.wait_for("medusa_worker_restarts_total reason=oom", count, within_s=20)
            assert answers_again(server)
            assert pid_of(server) != before


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_crash_before_the_first_token_is_a_status_and_is_not_tried_again(tmp_path: Path, is_streaming: bool) -> None:
    with running(tmp_path) as server:
        body = {**HELLO, "seed": fake_engine.CRASH_AT_ONCE, "stream": is_streaming}
        refused = server.post("/v1/completions", body)

        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "worker_died")
        assert "exit code 9" in refused.json()["error"]["message"]
        assert answers_again(server)
        assert restarts(server) == {"crash": 1}


def test_workers_that_crash_one_after_another_are_replaced_ever_later_and_health_tells_why(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for _ in range(2):
            server.wait_for("medusa_worker_up", 1, within_s=20)
            server.post("/v1/completions", {**HELLO, "seed": fake_engine.CRASH_AT_ONCE})

        # the second in a row waits for a second
        assert "exit code 9" in health(server)["reason"]
        assert restarts(server) == {"crash": 1}
        assert answers_again(server)


def test_a_worker_that_hangs_is_replaced_and_the_waiting_are_kept(tmp_path: Path) -> None:
    with running(tmp_path, step_timeout_s=PATIENCE_S) as server:
        found: list[httpx.Response] = []
        body = {**HELLO, "seed": fake_engine.HANG, "stream": True}
        hanging = threading.Thread(target=lambda: found.append(server.post("/v1/completions", body)))
        hanging.start()
        server.wait_for("medusa_num_requests_running", 1)
        with waiting(server, HELLO) as kept:
            hanging.join()

        *_, error, done = [line for line in found[0].text.split("\n") if line]
        assert '"code":"worker_died"' in error and "no sign of life for 3 s" in error
        assert done == "data: [DONE]"
        assert kept[0].json()["choices"][0]["text"] == "Hello"
        assert restarts(server) == {"hang": 1}


def test_a_worker_that_is_stopped_while_idle_hangs(tmp_path: Path) -> None:
    with running(tmp_path, step_timeout_s=PATIENCE_S) as server:
        os.kill(pid_of(server), signal.SIGSTOP)

        server.wait_for("medusa_worker_restarts_total reason=hang", 1, within_s=20)
        assert answers_again(server)


def test_a_worker_that_does_not_even_take_its_request_hangs(tmp_path: Path) -> None:
    with running(tmp_path, step_timeout_s=PATIENCE_S, max_context=200_000) as server:
        os.kill(pid_of(server), signal.SIGSTOP)
        # more than the pipe holds
        failed = server.post("/v1/completions", {**HELLO, "prompt": [299] * 150_000, "max_tokens": 1})

        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "worker_died")
        assert restarts(server) == {"hang": 1}
        assert answers_again(server)


def test_a_worker_that_does_not_heed_its_end_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, step_timeout_s=None) as server:
        os.kill(pid_of(server), signal.SIGSTOP)
        server.loop.call_soon_threadsafe(server.worker.reload)

        server.wait_for("medusa_worker_restarts_total reason=manual", 1, within_s=20)
        assert answers_again(server)


def test_a_worker_that_has_answered_is_replaced_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(tmp_path) as server:
        for _ in range(2):
            assert server.post("/v1/completions", {**HELLO, "seed": fake_engine.CRASH_AT_ONCE}).status_code == 500
            assert answers_again(server)

    told = [record.getMessage() for record in caplog.records if record.name == "medusa.worker"]
    assert [message.rpartition("; ")[2] for message in told] == ["another is started in 0 s"] * 2


def test_a_long_prefill_and_an_idle_worker_give_signs_of_life(tmp_path: Path) -> None:
    with running(tmp_path, step_timeout_s=PATIENCE_S) as server:
        # four seconds without a token
        answer = server.post("/v1/completions", {**HELLO, "seed": fake_engine.LONG_PREFILL})

        assert answer.json()["choices"][0]["text"] == "Hello"
        assert restarts(server) == {}


@pytest.mark.parametrize("seed", [fake_engine.SHORT_AT_ONCE, fake_engine.SHORT_OF_MEMORY])
def test_a_request_without_memory_is_told_the_way_out_and_the_worker_lives_on(tmp_path: Path, seed: int) -> None:
    with running(tmp_path) as server:
        before = pid_of(server)
        refused = server.post("/v1/completions", {**HELLO, "seed": seed})

        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "out_of_memory"
        assert refused.json()["error"]["type"] == "server_error"
        assert "shorten the prompt" in refused.json()["error"]["message"]
        # clients would send the same prompt again
        assert refused.headers["x-should-retry"] == "false"
        assert answers_again(server)
        assert (pid_of(server), restarts(server)) == (before, {})


def test_a_worker_without_memory_twice_in_a_row_is_replaced_and_the_waiting_are_kept(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        body = {**HELLO, "seed": fake_engine.SHORT_OF_MEMORY}
        assert server.post("/v1/completions", body).status_code == 503
        assert answers_again(server)
        assert server.post("/v1/completions", body).status_code == 503
        assert restarts(server) == {}

        streamed = server.post("/v1/completions", {**body, "stream": True})
        assert streamed.status_code == 200 and '"code":"out_of_memory"' in streamed.text
        server.wait_for("medusa_worker_restarts_total reason=oom", 1, within_s=20)
        assert answers_again(server)


def test_a_worker_that_lost_its_device_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        refused = server.post("/v1/completions", {**HELLO, "seed": fake_engine.LOST_DEVICE})

        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "device_fault")
        server.wait_for("medusa_worker_restarts_total reason=crash", 1, within_s=20)
        assert answers_again(server)


@pytest.mark.parametrize(
    ("heads", "reason"), [(fake_engine.MISFIT, "trained for hidden size 4096"), (fake_engine.DIES, "while it loaded")]
)
def test_a_model_that_cannot_be_loaded_is_told_by_the_probes(tmp_path: Path, heads: str, reason: str) -> None:
    with running(tmp_path, heads=heads) as server:
        assert server.get("/health").status_code == 200
        assert health(server)["state"] == "failed"
        assert reason in health(server)["reason"]
        refused = server.get("/ready")
        assert refused.status_code == 503
        assert reason in refused.json()["error"]["message"]
        assert server.get("/v1/models").json()["data"][0]["max_model_len"] is None


def test_a_load_that_fails_later_is_tried_until_it_succeeds_and_who_can_wait_is_answered(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with running(tmp_path, heads=f"{fake_engine.MISFIT_IF}{broken}") as server:
        with server.busy() as lines, waiting(server, {**HELLO, "timeout_s": 60}) as kept:
            with waiting(server, {**HELLO, "timeout_s": 3}, place=2) as late:
                broken.touch()
                os.kill(pid_of(server), signal.SIGKILL)
                list(lines)
                server.wait_for("medusa_worker_restarts_total reason=crash", 1, within_s=20)

                assert health(server)["state"] == "restarting"
                assert "trained for hidden size 4096" in health(server)["reason"]
                assert server.get("/ready").status_code == 503
                refused = server.post("/v1/completions", HELLO)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            broken.unlink()
        assert late[0].status_code == 503
        assert "no worker was ready within 3 s" in late[0].json()["error"]["message"]
        assert kept[0].json()["choices"][0]["text"] == "Hello"
        assert restarts(server)["oom"] == 1


def test_the_worker_is_replaced_after_the_running_answer_when_that_is_asked_for(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        before = pid_of(server)
        with server.busy() as lines, waiting(server, HELLO) as kept:
            server.loop.call_soon_threadsafe(server.worker.reload)
            next(lines)
            assert pid_of(server) == before
        assert kept[0].json()["choices"][0]["text"] == "Hello"
        assert restarts(server) == {"manual": 1}
        assert pid_of(server) != before


def test_the_worker_ends_with_the_server(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        pid = pid_of(server)
        os.kill(pid, 0)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_hangs_ends_with_the_server(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        pid = pid_of(server)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()

    assert time.monotonic() - began < 15
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
