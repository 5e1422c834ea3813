import asyncio
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import Message, Receive, Scope, Send

from medusa_core.errors import NotReady
from server.logs import SteadyStream, create_handler
from server.metrics import Metrics
from server.observing import HttpObserver, RefusalObserver
from server.tracing import NoTracing
from tests.server import fake_engine
from tests.server.running import Running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TIMES = ("duration_s", "queue_s", "prefill_s", "decode_s")


def completion(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "one two three", **more}


def lines(caplog: pytest.LogCaptureFixture, count: int = 1) -> list[logging.LogRecord]:
    """The lines of so many exchanges; a line comes after the answer that it tells of."""
    deadline = time.monotonic() + 10
    while len(found := [record for record in caplog.records if record.name == "medusa.access"]) < count:
        assert time.monotonic() < deadline, "there is no line"
        time.sleep(0.01)
    return found


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="medusa.access")


def test_a_line_tells_what_a_request_has_cost(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    answer = server.post(COMPLETIONS, completion(n=2)).json()
    (line,) = lines(caplog)
    told = vars(line)

    assert (told["method"], told["route"], told["status"], line.levelname) == ("POST", COMPLETIONS, 200, "INFO")
    assert told["finish_reason"] == "stop"
    assert told["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert told["tokens"] == answer["usage"]["completion_tokens"]
    assert told["steps"] == answer["speculation"]["steps"]
    assert told["tokens_per_step"] == answer["speculation"]["tokens_per_step"]
    assert all(told[name] >= 0 for name in TIMES)
    assert sum(told[name] for name in TIMES[1:]) <= told["duration_s"]


def test_a_route_is_told_as_it_is_written_in_the_code(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    server.get("/v1/models/secret-model?key=secret-key")
    server.get("/secret-path")
    known, unknown = map(vars, lines(caplog, 2))

    assert known["route"].startswith("/v1/models/{")
    assert unknown["route"] == "unknown"
    assert "secret" not in str(known) + str(unknown)


def test_what_a_client_chooses_freely_is_not_told(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    evil = {"user-agent": "secret-agent", "x-request-id": "secret id", "authorization": "Bearer secret-key"}
    body = {**completion(prompt="secret prompt"), "model": "secret-model\n", "user": "secret-user"}
    with server.openai() as client:
        client._client.request("GET", f"{server.url}/health", headers=evil)
    server.post(COMPLETIONS, body, headers=evil)
    server.post(COMPLETIONS, {**body, "model": "tiny"}, headers=evil)

    assert [vars(line)["status"] for line in lines(caplog, 3)] == [200, 404, 200]
    assert "secret" not in str([vars(line) for line in lines(caplog, 3)])


def test_probes_are_told_only_to_who_looks_for_a_fault(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        server.get(path)

    assert [line.levelname for line in lines(caplog, 4)] == ["DEBUG"] * 3 + ["INFO"]


def test_the_page_is_told_of_and_not_every_part_of_it(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/", "/playground/page.js", "/playground/none.js"):
        server.get(path)

    assert [line.levelname for line in lines(caplog, 3)] == ["INFO", "DEBUG", "INFO"]


@pytest.mark.parametrize(
    ("body", "status", "error", "level"),
    [
        (completion(model="other"), 404, "UnknownModel", "INFO"),
        (completion(max_tokens=0), 400, "InvalidParameter", "INFO"),
        (completion(seed=fake_engine.REFUSE), 400, "InvalidParameter", "INFO"),
        (completion(seed=fake_engine.FAIL), 500, "EngineError", "WARNING"),
        # the status had left when the answer failed
        (completion(seed=fake_engine.FAIL, stream=True), 200, "EngineError", "WARNING"),
        (completion(seed=fake_engine.LONG_PREFILL, timeout_s=0.1), 504, "RequestTimeout", "WARNING"),
    ],
)
def test_an_error_is_named_by_its_class(
    server: Running, caplog: pytest.LogCaptureFixture, body: dict[str, Any], status: int, error: str, level: str
) -> None:
    server.post(COMPLETIONS, body)
    (line,) = lines(caplog)

    assert (vars(line)["status"], vars(line)["error"], line.levelname) == (status, error, level)


def test_a_client_who_leaves_is_told_of(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    body = completion(seed=fake_engine.ENDLESS, max_tokens=380, stream=True)
    with httpx.stream("POST", f"{server.url}{COMPLETIONS}", json=body) as stream:
        next(stream.iter_lines())
    (line,) = lines(caplog)

    assert (vars(line)["finish_reason"], line.levelname) == ("abort", "INFO")
    assert not hasattr(line, "error")


def test_what_uvicorn_says_of_a_failure_nobody_expected_has_the_id_of_the_request(tmp_path: Path) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("void")

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    async def serve() -> None:
        observer = HttpObserver(ServerErrorMiddleware(broken), Metrics("tiny", 1), NoTracing())
        headers = [(b"x-request-id", b"one")]
        scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": headers}
        try:
            await observer(scope, lambda: asyncio.sleep(0, {"type": "http.request"}), send)
        except RuntimeError:
            logging.getLogger("medusa.access").error("Exception in ASGI application\n", exc_info=True)

    statuses: list[int | None] = []
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    handler = create_handler(SteadyStream(descriptor), "json", "server")
    logging.getLogger("medusa.access").addHandler(handler)
    asyncio.run(serve())
    logging.getLogger("medusa.access").removeHandler(handler)
    os.close(descriptor)
    line, failure = map(json.loads, (tmp_path / "log").read_text().splitlines())

    assert statuses[0] == line["status"] == 500
    assert line["request_id"] == failure["request_id"] == "one"
    assert "exception" not in line and failure["exception"][0]["exc_value"] == "void"


def test_what_the_protocol_refuses_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics("tiny", 1)
    RefusalObserver(metrics)(NotReady("too many connections", 5))
    (line,) = lines(caplog)

    assert (vars(line)["route"], vars(line)["status"], vars(line)["error"]) == ("unknown", 503, "NotReady")
    assert b'medusa_http_requests_total{handler="unknown",method="other",status="503"} 1.0' in metrics.expose()
    assert b'medusa_requests_rejected_total{reason="draining"} 1.0' in metrics.expose()


def test_what_is_refused_behind_a_request_is_told_under_its_own_id(
    server: Running, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    # asyncio begins to read anew for a body of this size, and then reads in the name of the request
    body = json.dumps(completion(user="x" * 200_000)).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nx-request-id: first\r\ncontent-type: application/json\r\n"
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    handler = create_handler(SteadyStream(descriptor), "json", "server")
    logging.getLogger("medusa.access").addHandler(handler)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20) as client:
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        lines(caplog)
        client.sendall(b"nonsense\r\n\r\n")
        answers = b"".join(iter(lambda: client.recv(100_000), b""))
    lines(caplog, 2)
    logging.getLogger("medusa.access").removeHandler(handler)
    os.close(descriptor)
    answered, refused = map(json.loads, (tmp_path / "log").read_text().splitlines())

    assert (answered["request_id"], answered["status"], refused["status"]) == ("first", 200, 400)
    assert f"x-request-id: {refused['request_id']}\r\n".encode() in answers.rpartition(b"HTTP/1.1 400 ")[2]
