import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from ray.serve.generated import serve_pb2, serve_pb2_grpc

from tests.live_server import clean_environment, serving
from tests.ray.cluster import SETTINGS, Cluster, wait_for
from tests.ray.conftest import QUEUE_SIZE

QUESTIONS = [f"What does {name} do?" for name in ("os.walk", "json.dumps", "textwrap.dedent", "heapq.merge", "re.sub")]


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


def test_both_replicas_serve(two: Cluster) -> None:
    before = two.answered()

    for number in range(12):
        text(two.chat("Hello", {"x-session-id": f"both-{number}"}))

    served = {replica: count - before.get(replica, 0) for replica, count in two.answered().items()}
    assert served.keys() == {"0", "1"}
    assert all(count > 0 for count in served.values())
    assert sum(served.values()) == 12


def test_a_conversation_stays_where_its_prefix_is(two: Cluster) -> None:
    cached = []
    for question in QUESTIONS:
        first = text(two.chat(question, max_tokens=40))
        turns = [{"role": "assistant", "content": first}, {"role": "user", "content": "And who uses it?"}]
        second = two.post({"messages": [{"role": "user", "content": question}, *turns]})
        usage = second.json()["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"])

    assert all(share > 0.5 for share in cached), cached


@pytest.mark.parametrize("where", ["header", "field"])
def test_what_a_client_calls_one_conversation_goes_to_one_replica(two: Cluster, where: str) -> None:
    before = two.answered()

    for question in QUESTIONS:
        header = {"x-session-id": "mine"} if where == "header" else {}
        field = {"prompt_cache_key": "mine"} if where == "field" else {}
        text(two.chat(question, header, **field))

    served = [count - before.get(replica, 0) for replica, count in two.answered().items()]
    assert sorted(served) == [0, len(QUESTIONS)]


def test_a_conversation_does_not_wait_for_a_whole_queue_while_a_replica_is_idle(two: Cluster) -> None:
    before = two.answered()
    whole = {"max_tokens": 1500, "ignore_eos": True, "speculation": {"mode": "off"}}

    with ThreadPoolExecutor(4) as pool:
        asked = []
        # a replica has room for five; whichever front a request comes to, by the fourth both know of two at the first
        for number in range(1, 5):
            asked.append(pool.submit(two.chat, "Hi", {"x-session-id": "one by one"}, **whole))
            wait_for(f"{number} at replicas", lambda number=number: two.taken() == number)

    assert [answer.result().status_code for answer in asked] == [200] * 4
    assert all(count > before.get(replica, 0) for replica, count in two.answered().items())


def test_a_conversation_is_refused_nothing_while_another_replica_has_a_place(two: Cluster) -> None:
    before = two.answered()

    def ask(_: int) -> int:
        return two.chat("Hi", {"x-session-id": "busy"}, max_tokens=400, ignore_eos=True).status_code

    # as many as both replicas can hold, of which one alone would refuse half; what the fronts know is older
    with ThreadPoolExecutor(2 * (1 + QUEUE_SIZE)) as pool:
        statuses = list(pool.map(ask, range(2 * (1 + QUEUE_SIZE))))

    assert statuses == [200] * 2 * (1 + QUEUE_SIZE)
    assert all(count > before.get(replica, 0) for replica, count in two.answered().items())


def test_answers_are_those_of_the_server_alone(two: Cluster, tmp_path: Path) -> None:
    requests = [{"max_tokens": 48}, {"max_tokens": 48, "temperature": 0.8, "seed": 5}]
    ours = [text(two.chat(question, **fields)) for question in QUESTIONS for fields in requests]

    with serving(
        [str(Path(sys.executable).with_name("medusa")), "serve"], tmp_path, clean_environment(**SETTINGS)
    ) as url:
        for content, (question, fields) in zip(ours, [(q, f) for q in QUESTIONS for f in requests], strict=True):
            body = {"model": "demo", "messages": [{"role": "user", "content": question}], "temperature": 0, **fields}
            assert text(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)) == content


def test_a_stream_arrives_as_it_is_written_and_probes_answer_meanwhile(two: Cluster) -> None:
    with two.stream("one", session="stream-1") as one, two.stream("two", session="stream-2") as other:
        events = [next(one), next(one), next(other)]
        health, ready = httpx.get(f"{two.url}/health", timeout=30), httpx.get(f"{two.url}/ready", timeout=30)
        models = httpx.get(f"{two.url}/v1/models", timeout=30)
        running = sum(two.samples("medusa_num_requests_running").values())
        events += [*one, *other]

    assert running >= 1, "the answers had ended before anything of them was read"
    assert [health.status_code, ready.status_code, models.status_code] == [200, 200, 200]
    assert health.json()["state"] == "ready"
    assert len(events) > 1000
    assert events.count("[DONE]") == 2


def test_a_client_that_leaves_frees_its_replica(two: Cluster) -> None:
    before = sum(two.samples("medusa_requests_cancelled_total").values())

    with two.stream("Tell me everything") as events:
        next(events)

    wait_for("cancelled", lambda: sum(two.samples("medusa_requests_cancelled_total").values()) == before + 1)
    wait_for("idle", lambda: sum(two.samples("medusa_num_requests_running").values()) == 0)


def test_a_full_queue_answers_429_and_when_to_try_again(two: Cluster) -> None:
    def ask(number: int) -> httpx.Response:
        return two.chat("Hi", {"x-session-id": f"crowd-{number}"}, max_tokens=600, ignore_eos=True)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))

    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert len(answers) - len(refused) >= 2 * (1 + QUEUE_SIZE)
    assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert max(two.samples("medusa_queue_capacity").values()) == QUEUE_SIZE


@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        ("/v1/chat/completions", b"{", 400, "invalid_value"),
        ("/v1/chat/completions", b"x" * 2_000_001, 413, "request_too_large"),
        (
            "/v1/chat/completions",
            b'{"model": "no", "messages": [{"role": "user", "content": "Hi"}]}',
            404,
            "model_not_found",
        ),
        ("/v1/nothing", b"{}", 404, None),
    ],
)
def test_errors_keep_their_shape(two: Cluster, path: str, content: bytes, status: int, code: str | None) -> None:
    answer = httpx.post(f"{two.url}{path}", content=content, headers={"content-type": "application/json"}, timeout=60)

    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code
    assert len(answer.headers.get_list("x-request-id")) == 1


def listening(two: Cluster) -> set[tuple[bool, int]]:
    """Whether each listening socket of the cluster's processes is on the loopback address, and its port."""
    own = set()
    for process in two.processes():
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            own.add(str(descriptor.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                # 127.0.0.1, in the order of this machine's bytes, alone or as IPv6 writes it; ::1 is not used
                found.add((address.endswith("0100007F"), int(port, 16)))
    return found


def test_the_network_reaches_nothing_that_answers_without_rays_token(two: Cluster) -> None:
    sockets = listening(two)

    assert (True, httpx.URL(two.url).port) in sockets
    for is_loopback, port in sockets:
        if not is_loopback:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
                serve_pb2_grpc.ASGIServiceStub(channel).HandleRequest(serve_pb2.ASGIRequest(), timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, port


def test_metrics_of_all_replicas_stand_in_one_exposition(two: Cluster) -> None:
    assert two.samples("medusa_worker_up") == {"0": 1.0, "1": 1.0}
    assert set(two.samples("medusa_tokens_per_step_count")) == {"0", "1"}
