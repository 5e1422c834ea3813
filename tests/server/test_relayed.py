import asyncio
import json
import logging
import pickle
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from server.relayed import ANSWERED_BY, answer_with_room, disconnected, plain_scope, relayed_answer, whole_response


async def echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse({"path": request.url.path, "body": body.decode(), "key": request.headers["x-key"]}, 201)


async def numbers(request: Request) -> Response:
    async def count() -> AsyncIterator[str]:
        for number in range(3):
            yield f"{number} "

    return StreamingResponse(count())


async def broken(request: Request) -> Response:
    raise ValueError("the application's own fault")


APP = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/numbers", numbers), Route("/broken", broken)])


def scope(path: str, method: str = "GET") -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"x-key", b"k")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


async def collected(path: str, method: str = "GET", body: bytes = b"") -> list[Message]:
    return [message async for message in relayed_answer(APP, scope(path, method), body)]


def test_a_request_is_answered_by_an_application_without_a_socket() -> None:
    response = whole_response(asyncio.run(collected("/echo", "POST", b"hello")))

    assert response.status_code == 201
    assert json.loads(response.body) == {"path": "/echo", "body": "hello", "key": "k"}
    assert response.headers["content-type"] == "application/json"


def test_a_stream_travels_message_by_message() -> None:
    start, *parts = asyncio.run(collected("/numbers"))

    assert start["status"] == 200
    assert [part["body"] for part in parts if part["body"]] == [b"0 ", b"1 ", b"2 "]


def test_what_travels_is_the_request_alone() -> None:
    received = {**scope("/echo"), "state": {"lock": object()}, "app": APP, "extensions": {}}

    assert pickle.loads(pickle.dumps(plain_scope(received))) == scope("/echo")


def test_an_application_learns_that_its_client_left() -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        heard.append((await receive())["type"])

    async def leave() -> None:
        answer = relayed_answer(app, scope("/"), b"")
        async for _ in answer:
            break
        await answer.aclose()

    asyncio.run(leave())

    assert heard == ["http.disconnect"]


def test_a_request_that_fails_is_answered_and_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "medusa.relayed"):
        response = whole_response(asyncio.run(collected("/broken")))

    assert response.status_code == 500
    assert [record.message for record in caplog.records] == ["a request failed"]


def of_replicas(codes: dict[str, str], most: int) -> tuple[Response, list[str]]:
    """What comes of a request, and who was asked; a replica without a code answers."""
    asked: list[str] = []

    async def ask(full: Sequence[str]) -> AsyncGenerator[Message, None]:
        replica = next((name for name in codes if name not in full), next(iter(codes)))
        asked.append(replica)
        code = codes[replica]
        yield {"type": "http.response.start", "status": 429 if code else 200, "headers": [], ANSWERED_BY: replica}
        for part in json.dumps({"error": {"code": code}} if code else replica):
            yield {"type": "http.response.body", "body": part.encode(), "more_body": True}

    async def collect() -> list[Message]:
        return [message async for message in answer_with_room(ask, most)]

    return whole_response(asyncio.run(collect())), asked


@pytest.mark.parametrize(
    ("codes", "most", "status", "expected"),
    [
        ({"a": "", "b": ""}, 2, 200, ["a"]),
        ({"a": "queue_full", "b": ""}, 2, 200, ["a", "b"]),
        ({"a": "queue_full", "b": "queue_full", "c": ""}, 3, 200, ["a", "b", "c"]),
        ({"a": "queue_full", "b": "queue_full"}, 2, 429, ["a", "b"]),
        # one of four that there could be runs, and nobody else can be asked
        ({"a": "queue_full"}, 4, 429, ["a", "a"]),
        ({"a": "rate_limit_exceeded", "b": ""}, 2, 429, ["a"]),
    ],
)
def test_a_request_is_refused_only_when_no_replica_has_a_place(
    codes: dict[str, str], most: int, status: int, expected: list[str]
) -> None:
    answer, asked = of_replicas(codes, most)

    assert answer.status_code == status
    assert asked == expected
    assert json.loads(answer.body) == (asked[-1] if status == 200 else {"error": {"code": codes[asked[-1]]}})


def test_a_client_has_left_when_its_connection_is_closed() -> None:
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        return messages.pop()

    asyncio.run(disconnected(receive))

    assert messages == []
