"""Processes that are killed; in a file of its own, since what is killed comes back under another id."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.ray.cluster import START_TIMEOUT_S, STOP_TIMEOUT_S, Cluster, cluster, is_ready, starting, wait_for

DELAYS = "--upscale-delay-s", "1", "--downscale-delay-s", "1"
ONE_MORE = "--min-replicas", "1", "--max-replicas", "2", "--fronts", "1", *DELAYS


def both_serve(two: Cluster) -> bool:
    answer = httpx.get(f"{two.url}/metrics", timeout=60)
    return answer.status_code == 200 and two.samples("medusa_worker_up") == {"0": 1.0, "1": 1.0}


def test_a_killed_replica_loses_no_later_request_and_comes_back(two: Cluster) -> None:
    wait_for("two replicas", lambda: len(two.replicas()) == 2)
    killed, kept = two.replicas()
    orphan = two.worker_of(killed)

    os.kill(killed, signal.SIGKILL)
    one_by_one = [two.chat("Hi", {"x-session-id": f"later-{number}"}) for number in range(30)]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda number: two.chat("Hi", {"x-session-id": f"at-once-{number}"}), range(30)))

    assert [answer.status_code for answer in one_by_one + at_once] == [200] * 60
    wait_for("the orphan gone", lambda: not Path(f"/proc/{orphan}").exists())
    wait_for("two replicas again", lambda: len(two.replicas()) == 2 and both_serve(two))
    assert kept in two.replicas()
    assert killed not in two.replicas()


def test_what_killed_replicas_were_answering_ends_with_an_error(two: Cluster) -> None:
    wait_for("two replicas", lambda: both_serve(two))
    whole = {"max_tokens": 1500, "ignore_eos": True, "speculation": {"mode": "off"}}
    with ThreadPoolExecutor(1) as pool, two.stream("everything") as events:
        other = pool.submit(two.chat, "everything else", **whole)
        next(events)
        wait_for("two requests at replicas", lambda: two.taken() == 2)
        for replica in two.replicas():
            os.kill(replica, signal.SIGKILL)
        *_, last, end = events

    assert other.result().status_code == 500
    assert other.result().json()["error"]["code"] == "worker_died"
    assert json.loads(last)["error"]["code"] == "worker_died"
    assert end == "[DONE]"
    # nobody is left, and the next one waits until somebody is back
    assert two.chat("Hi").status_code == 200
    wait_for("two replicas again", lambda: len(two.replicas()) == 2 and both_serve(two))


def test_a_killed_front_loses_no_later_request(two: Cluster) -> None:
    front = min(two.processes("ray::ServeReplica:medusa:Front"))

    os.kill(front, signal.SIGKILL)

    assert [two.chat("Hi").status_code for _ in range(20)] == [200] * 20


def test_replicas_come_and_go_with_the_queue_and_every_end_waits_for_what_runs(tmp_path: Path) -> None:
    with cluster(tmp_path, *ONE_MORE) as growing:
        assert len(growing.replicas()) == 1

        def ask(number: int) -> int:
            asked = 0
            while len(growing.samples("medusa_worker_up")) < 2 and asked < 500:
                assert growing.chat("Hi", {"x-session-id": f"{number}"}, max_tokens=100).status_code == 200
                asked += 1
            return asked

        with ThreadPoolExecutor(4) as pool:
            asked = list(pool.map(ask, range(4)))
        assert len(growing.replicas()) == 2, asked
        assert both_serve(growing)

        # one at a time is work for one replica; the other may be the one that goes, with what it is answering
        ends = []
        while len(growing.replicas()) > 1:
            with growing.stream("Go on", session=f"{len(ends)}") as events:
                ends.append([*events][-2:])
        assert all("finish_reason" in last and end == "[DONE]" for last, end in ends), ends

        with growing.stream("the last one") as events:
            first = next(events)
            growing.process.send_signal(signal.SIGTERM)
            # only the probe may ask before: what is still taken waits until the stream ends, and the server with it
            wait_for("draining", lambda: not is_ready(growing.url))
            ready = httpx.get(f"{growing.url}/ready", timeout=30)
            late = growing.chat("too late")
            rest = [*events]

        assert ready.status_code == 503
        assert ready.json()["error"]["message"] == "the server is shutting down"
        assert late.status_code == 503
        assert late.json()["error"]["message"] == "the server is shutting down"

        assert "error" not in json.loads(first)
        assert rest[-1] == "[DONE]"
        assert "finish_reason" in rest[-2]
        assert not any('"error"' in event for event in rest)


def test_a_signal_ends_a_start_whose_model_never_loads(tmp_path: Path) -> None:
    with starting(tmp_path) as loading:
        wait_for("loading", lambda: loading.processes("spawn_main") != {}, START_TIMEOUT_S)
        (worker,) = loading.processes("spawn_main")
        os.kill(worker, signal.SIGSTOP)

        loading.process.send_signal(signal.SIGTERM)

        assert loading.process.wait(STOP_TIMEOUT_S) == 130
        assert loading.processes() == {}
