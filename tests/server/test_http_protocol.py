"""Real sockets against an application of a few lines, since it is the operating system's buffers that matter."""

import asyncio
import functools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from medusa_core.errors import MedusaError
from server.errors import HeadersTooLarge, MalformedHttp, RequestTooSlow, TooManyConnections
from server.http_protocol import MAX_HEADER_BYTES, ConnectionLimits, GuardedProtocol

HEADER_S, SEND_S, KEEP_ALIVE_S = 0.3, 0.3, 1
# What is asked for beside the fixture's limits; an answer that takes longer than this will not come.
PATIENCE_S = 10.0
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
FLOOD = b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Served:
    """The application's side: what it saw, and the address to connect to."""

    address: tuple[str, int]
    server: uvicorn.Server
    refused: list[MedusaError] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE_S)

    def ask(self, request: bytes) -> bytes:
        """Everything that comes back until the server closes."""
        with self.connect() as client:
            client.sendall(request)
            return read_all(client)

    def wait_until(self, is_so: Any) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.01)


def read_one(client: socket.socket) -> bytes:
    """An answer of the application."""
    received = b""
    while not received.endswith(b"\r\n\r\nok"):
        part = client.recv(1000)
        assert part, received
        received += part
    return received


def read_all(client: socket.socket) -> bytes:
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        parts.append(b"<reset>")
    return b"".join(parts)


@contextmanager
def serving(max_connections: int = 50) -> Iterator[Served]:
    """An application that reads its body and says ok; /flood sends for ever, /late never reads and takes a while."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        if scope["path"] == "/late":
            await asyncio.sleep(0.1)
        while scope["path"] != "/late":
            message = await receive()
            if message["type"] == "http.disconnect":
                served.ended.append("left")
                return
            body += message["body"]
            if not message["more_body"]:
                break
        served.bodies.append(body)
        if scope["path"] == "/flood":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            leaving = asyncio.ensure_future(receive())
            while not leaving.done():
                await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
            served.ended.append("flood")
            return
        answer = b"ok" * (10_000_000 if scope["path"] == "/large" else 1)
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        served.ended.append("answered")

    listener = socket.create_server(("127.0.0.1", 0))
    refused: list[MedusaError] = []
    limits = ConnectionLimits(HEADER_S, SEND_S, max_connections)
    protocol: Any = functools.partial(GuardedProtocol, limits, refused.append)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = uvicorn.Server(config)
    served = Served(listener.getsockname(), server, refused)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        served.wait_until(lambda: server.started)
        yield served
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    """The one server, with nothing to tell yet."""
    shared.wait_until(lambda: not shared.server.server_state.connections)
    for told in (shared.refused, shared.bodies, shared.ended):
        told.clear()
    return shared


def post(headers: str, body: bytes) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode() + body


def chunked(size: int, count: int) -> bytes:
    return b"".join(f"{size:x}\r\n".encode() + b"x" * size + b"\r\n" for _ in range(count)) + b"0\r\n\r\n"


CHUNKED = "Transfer-Encoding: chunked"
REFUSED = {
    "both lengths": (post(f"Content-Length: 5\r\n{CHUNKED}", b"0\r\n\r\n"), 400),
    "both lengths, the other way round": (post(f"{CHUNKED}\r\nContent-Length: 5", b"0\r\n\r\n"), 400),
    "two lengths": (post("Content-Length: 5\r\nContent-Length: 6", b"hello!"), 400),
    "a signed length": (post("Content-Length: +5", b"hello"), 400),
    "a hexadecimal length": (post("Content-Length: 0x5", b"hello"), 400),
    "an unknown encoding": (post("Transfer-Encoding: xchunked", b"0\r\n\r\n"), 400),
    "an encoding behind chunks": (post("Transfer-Encoding: chunked, identity", b"0\r\n\r\n"), 400),
    "chunks in HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a space before the colon": (post("Transfer-Encoding : chunked", b"0\r\n\r\n"), 400),
    "a zero in a value": (post("X-A: a\0b", b""), 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "a broken chunk": (post(CHUNKED, b"zz\r\n"), 400),
    "dust": (post(CHUNKED, chunked(1, 5000)), 400),
    "a long header": (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 20_000 + b"\r\n\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: aaaaaa\r\n" * 3_000 + b"\r\n", 431),
    "a header without an end": (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 300_000, 431),
    "a long target": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_the_shape_of_every_error_and_the_connection_closed(served: Served, what: str) -> None:
    request, status = REFUSED[what]
    head, _, body = served.ask(request).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert {b"connection: close", b"content-type: application/json"} <= set(head.split(b"\r\n"))
    assert b"\r\nx-request-id: " in head and b"\r\nserver:" not in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert isinstance(served.refused[0], HeadersTooLarge if status == 431 else MalformedHttp)
    assert len(served.refused) == 1


def test_what_comes_behind_an_ambiguous_request_is_never_a_request(served: Served) -> None:
    answers = served.ask(post(f"Content-Length: 5\r\n{CHUNKED}", b"0\r\n\r\n" + GET))

    assert answers.count(b"HTTP/1.1 ") == 1
    assert served.bodies == []


def test_no_error_repeats_what_the_client_sent(served: Served) -> None:
    assert b"sesame" not in served.ask(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization Bearer sesame\r\n\r\n")


@pytest.mark.parametrize(
    "request_", [b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-A: " + b"a" * 8_000 + b"\r\n\r\n",
                 post("Connection: close\r\nContent-Length: 5", b"hello"),
                 post(f"Connection: close\r\n{CHUNKED}", chunked(64, 3_000)),
                 b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n"],
    ids=["8 KB of headers", "a length", "chunks", "an offer to upgrade"],
)  # fmt: skip
def test_a_usual_request_is_answered(served: Served, request_: bytes) -> None:
    assert served.ask(request_).startswith(b"HTTP/1.1 200 OK\r\n")
    assert served.refused == []


def test_a_limit_of_headers_is_the_same_however_they_arrive(served: Served) -> None:
    with served.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for _ in range(30):
            client.sendall(b"X-A: " + b"a" * 1_000 + b"\r\n")
            time.sleep(0.001)
        assert read_all(client).startswith(b"HTTP/1.1 431 ")
    assert MAX_HEADER_BYTES < 30_000


def test_half_a_header_is_answered_in_time_on_the_first_request_and_on_the_next(served: Served) -> None:
    for before in (b"", GET):
        with served.connect() as client:
            if before:
                client.sendall(before)
                assert read_one(client).startswith(b"HTTP/1.1 200 ")
            client.sendall(GET[:-10])
            assert read_all(client).startswith(b"HTTP/1.1 408 ")
    assert [type(error) for error in served.refused] == [RequestTooSlow, RequestTooSlow]


def test_a_byte_now_and_then_does_not_put_the_deadline_off(served: Served) -> None:
    with served.connect() as client:
        answer = b""
        for byte in b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 1000:
            try:
                client.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(HEADER_S / 10)
            client.setblocking(False)
            try:
                answer += client.recv(1000)
            except BlockingIOError:
                continue
            finally:
                client.settimeout(PATIENCE_S)
            break
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_half_a_header_behind_a_pipelined_request_is_late_too(served: Served) -> None:
    answers = served.ask(GET + GET[:-10])

    assert answers.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answers


def test_a_connection_without_a_request_is_closed_without_an_answer(served: Served) -> None:
    assert served.ask(b"") == b""
    assert served.refused == []


def test_a_connection_is_kept_for_the_next_request_and_closed_when_none_comes(served: Served) -> None:
    with served.connect() as client:
        for _ in range(2):
            client.sendall(GET)
            assert read_one(client).startswith(b"HTTP/1.1 200 ")
            time.sleep(HEADER_S * 1.5)  # idle, which is not half a header
        assert read_all(client) == b""
    assert served.refused == []


def test_the_rest_of_a_body_that_nobody_reads_ends_in_time(served: Served) -> None:
    with served.connect() as client:
        client.sendall(post("Content-Length: 1000000", b"").replace(b"POST /", b"POST /late"))
        assert read_one(client).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(OSError):
            for _ in range(1000):
                client.sendall(b"x")
                time.sleep(0.01)


def test_an_application_hears_of_a_body_that_breaks(served: Served) -> None:
    with served.connect() as client:
        client.sendall(post(CHUNKED, b"5\r\nhello\r\n"))
        time.sleep(0.05)
        client.sendall(b"zz\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 400 ")
    served.wait_until(lambda: served.ended == ["left"])


def test_an_application_that_has_not_begun_to_read_hears_of_it_too(served: Served) -> None:
    request = post(f"Expect: 100-continue\r\n{CHUNKED}", b"zz\r\n")

    assert served.ask(request).startswith(b"HTTP/1.1 400 ")
    served.wait_until(lambda: served.ended == ["left"])


def test_an_answer_to_a_request_that_was_refused_meanwhile_goes_nowhere(served: Served) -> None:
    with served.connect() as client:
        client.sendall(post(CHUNKED, b"zz\r\n").replace(b"POST /", b"POST /late"))
        assert read_all(client).count(b"HTTP/1.1 ") == 1
        # the client is still there, though nobody speaks to it any more
        served.wait_until(lambda: served.ended == ["answered"])


def test_a_refused_client_that_keeps_on_sending_is_cut_off(served: Served) -> None:
    with served.connect() as client:
        client.sendall(b"nonsense\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(1000):
                client.sendall(b"x" * 1000)
                time.sleep(0.01)


def test_a_server_ends_in_order_while_a_refused_client_is_still_there() -> None:
    ambiguous, _ = REFUSED["both lengths"]
    with serving() as served, served.connect() as refused, served.connect() as client:
        refused.sendall(ambiguous)
        assert refused.recv(1000).startswith(b"HTTP/1.1 400 ")
        client.sendall(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
        served.wait_until(lambda: served.server.server_state.tasks)
        served.server.should_exit = True

        assert read_all(client).endswith(b"\r\n\r\nok")


def test_more_clients_than_the_limit_are_turned_away_and_places_become_free() -> None:
    with serving(max_connections=2) as served:
        first, second = served.connect(), served.connect()
        for client in (first, second):
            client.sendall(GET)
            assert read_one(client).startswith(b"HTTP/1.1 200 ")
        with served.connect() as third:
            answer = read_all(third)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in answer
        first.close()
        served.wait_until(lambda: len(served.server.server_state.connections) == 1)
        assert served.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        second.close()
    assert [type(error) for error in served.refused] == [TooManyConnections]


def test_a_reader_that_reads_nothing_is_let_go_and_the_application_told(served: Served) -> None:
    with served.connect() as client:
        client.sendall(FLOOD)
        served.wait_until(lambda: served.ended == ["flood"])
        served.wait_until(lambda: not served.server.server_state.connections)


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
def test_a_finished_answer_does_not_wait_for_a_reader_for_ever(served: Served, connection: bytes) -> None:
    with served.connect() as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: " + connection + b"\r\n\r\n")
        served.wait_until(lambda: served.bodies)
        served.wait_until(lambda: not served.server.server_state.connections)


def test_a_slow_reader_that_does_read_gets_everything(served: Served) -> None:
    with served.connect() as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = 0
        while part := client.recv(1_000_000):
            received += len(part)
            time.sleep(0.02)
    assert received > 20_000_000


def test_other_clients_are_answered_while_one_does_not_read(served: Served) -> None:
    with served.connect() as slow:
        slow.sendall(FLOOD)
        assert slow.recv(10)
        with served.connect() as client:
            for _ in range(20):
                client.sendall(GET)
                assert read_one(client).startswith(b"HTTP/1.1 200 ")
