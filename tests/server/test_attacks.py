"""What became a hole in other servers, tried here: the attack, and that nothing comes of it.

docs/operations.md has the whole list; what stands elsewhere is not repeated here.
"""

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Mount, Route

from medusa_core.text import TextCodec
from server.app import create_app, create_worker
from server.auth import is_open, open_paths
from server.metrics import Metrics
from server.settings import Settings
from server.tracing import create_tracing
from tests.server import fake_engine
from tests.server.running import MODEL, Running, running
from tests.tiny_tokenizers import save_byte_level

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
KEY = "sesame"
PAGE = "http://localhost:3000"
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Reply:
    status: int
    head: bytes
    body: bytes


def raw(server: Running, request: bytes) -> Reply:
    """Bytes as they are, which no client library would send."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=PATIENCE_S) as client:
        client.sendall(request)
        received = b""
        while part := client.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return Reply(int(head.split(b" ")[1]), head, body)


def asked(target: str, method: str = "GET", host: str = "localhost", **headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a key, whose pages about itself are open."""
    with running(tmp_path_factory.mktemp("closed"), api_key=KEY, open_docs=True) as server:
        yield server


def built(folder: Path, metrics: Metrics, **options: Any) -> FastAPI:
    """An application that is not served; its worker never starts."""
    save_byte_level(folder)
    settings = Settings(model=str(folder), served_model_name=MODEL, **options)
    worker = create_worker(settings, metrics, fake_engine.FACTORY)
    return create_app(settings, worker, TextCodec.load(str(folder)), metrics, create_tracing(None, {}))


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """A path for every route there is, with each of its methods."""
    pending = list(app.routes)
    while pending:
        route = pending.pop()
        inner = getattr(route, "original_router", None)
        if isinstance(route, Mount):
            yield "GET", f"{route.path}/x"
        elif isinstance(route, Route):
            for method in route.methods or ():
                yield method, route.path.replace("{name:path}", MODEL)
        else:
            assert inner is not None, f"nobody knows who may ask for {route!r}"
            pending += inner.routes


@pytest.mark.parametrize("options", [{}, {"open_docs": True}, {"open_metrics": False}, {"playground": False}], ids=str)
def test_every_route_needs_the_key_or_is_on_the_public_list(tmp_path: Path, options: dict[str, bool]) -> None:
    app = built(tmp_path, Metrics(MODEL, 1), api_key=KEY, **options)
    chosen = {name.removeprefix("open_"): value for name, value in options.items()}
    public = open_paths(**{"metrics": True, "docs": False, "playground": True, **chosen})

    async def statuses() -> dict[tuple[str, str], int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return {(method, path): (await client.request(method, path)).status_code for method, path in routes}

    routes = sorted(routes_of(app))
    found = asyncio.run(statuses())
    assert {path for _, path in routes} >= {CHAT, COMPLETIONS, "/tokenize", "/metrics", "/docs", "/openapi.json"}
    for (method, path), status in found.items():
        assert (status == 401) != is_open(path, public), f"{method} {path}: {status}"


# targets that mean a closed path to somebody, and an open one to somebody else
DISGUISES = [
    "//v1/models",
    "/./v1/models",
    "/V1/models",
    "/v1/models/",
    "/v1/%6dodels",
    "/v1%2fmodels",
    "/%76%31/models",
    "/health/../v1/models",
    "/health/..%2fv1/models",
    "/health%2f..%2f..%2fv1/models",
    "/health;/v1/models",
    "/health%00/v1/models",
    "/health%20",
    "/health/",
    "/HEALTH",
    "/metrics/../v1/models",
    "/metrics/x",
    "/docs/../v1/models",
    "/docsx",
    "/static-offline-docs",
    "http://localhost/health",
    "http://localhost/health/../v1/models",
    "health",
    "*",
    "/%ff/health",
    "/v1/models?/health",
    "/v1/models#/health",
]
HOSTS = ["localhost", "localhost/health?", "localhost/health#", "/health", "health", "x@localhost/health"]


@pytest.mark.parametrize("target", DISGUISES)
def test_a_path_in_disguise_is_closed_whatever_the_method_and_the_host(closed: Running, target: str) -> None:
    for method in ("GET", "HEAD", "POST", "OPTIONS", "get", "TRACE", "CONNECT"):
        for host in HOSTS:
            assert raw(closed, asked(target, method, host)).status == 401, (method, host)


@pytest.mark.parametrize("header", ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Forwarded-Path"])
def test_no_header_tells_the_server_another_path(closed: Running, header: str) -> None:
    assert raw(closed, asked("/v1/models", **{header: "/health"})).status == 401
    assert raw(closed, asked("/health", **{header: "/v1/models"})).body.startswith(b'{"status":"ok"')


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-Method-Override"])
def test_no_header_tells_the_server_another_method(closed: Running, header: str) -> None:
    assert raw(closed, asked("/health", "POST", **{header: "GET"})).status == 405


@pytest.mark.parametrize(
    "path", ["../v1/models", "%2e%2e/v1/models", "..%2f..%2f..%2fetc/passwd", "/etc/passwd", "%00"]
)
def test_the_open_folder_of_the_docs_shows_its_own_files_only(closed: Running, path: str) -> None:
    assert raw(closed, asked("/static-offline-docs/swagger-ui.css")).status == 200
    for name in (path, "a" * 9000):
        assert raw(closed, asked(f"/static-offline-docs/{name}")).status == 404


@pytest.mark.parametrize(
    "target", ["/health/", "/docs/", "/static-offline-docs", "/v1/models/", "//evil.example/..%2f"]
)
def test_nobody_is_sent_to_a_host_that_the_client_names(closed: Running, target: str) -> None:
    reply = raw(closed, asked(target, host="evil.example", Authorization=f"Bearer {KEY}"))

    assert reply.status == 404
    assert b"evil" not in reply.head.lower()


def test_what_stands_in_a_target_becomes_no_header(closed: Running) -> None:
    target = "/v1/models/x%0d%0aset-cookie:%20a=b%0d%0a%0d%0a<script>"
    reply = raw(closed, asked(target, Authorization=f"Bearer {KEY}", X_Request_Id="a%0d%0ax"))

    assert reply.status == 404
    assert b"set-cookie" not in reply.head
    assert b"\r\ncontent-type: application/json\r\n" in reply.head


def test_a_connection_is_upgraded_to_nothing(closed: Running) -> None:
    offer = {"Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
    for path in ("/v1/models", CHAT):
        request = asked(path, **offer).replace(b"Connection: close", b"Connection: Upgrade, close")
        assert raw(closed, request).status == 401


def test_a_request_smuggled_behind_another_is_not_answered(closed: Running) -> None:
    inner = asked("/health").decode()
    for framing in (f"Content-Length: {len(inner)}\r\nTransfer-Encoding: chunked", "Transfer-Encoding: \x0bchunked"):
        request = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n0\r\n\r\n{inner}".encode()
        reply = raw(closed, request)
        assert reply.status == 400
        assert b"HTTP/1.1" not in reply.body


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with little patience."""
    folder = tmp_path_factory.mktemp("strict")
    with running(folder, api_key="sesame,sezam", rate_limit=3, body_timeout_s=0.3) as server:
        yield server


def grown(server: Running, before: dict[str, float]) -> dict[str, float]:
    """Requests that were counted since, by what they got and by the reason why they were turned away."""
    now = server.metrics()
    names = [name for name in now if name.startswith(("medusa_http_requests_total", "medusa_requests_rejected_total"))]
    found = {name.partition("_total ")[2]: now[name] - before.get(name, 0) for name in names if "/metrics" not in name}
    return {name: count for name, count in found.items() if count > 0}


@pytest.mark.parametrize("pause_s", [0.6, 0.05], ids=["once", "now and then"])
def test_a_body_that_does_not_come_is_a_408(strict: Running, pause_s: float) -> None:
    async def dawdle(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        # no request for text, which would count for the key
        head = f"PUT {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000\r\n\r\n"
        writer.write(head.encode())
        reading = asyncio.ensure_future(reader.read())
        while not reading.done():
            writer.write(b"{")
            await asyncio.wait((reading,), timeout=pause_s)
        writer.close()
        return reading.result()

    before = strict.metrics()
    answer = asyncio.run(asyncio.wait_for(dawdle(int(strict.url.rpartition(":")[2])), PATIENCE_S))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert grown(strict, before) == {"reason=invalid": 1, "handler=unknown method=PUT status=408": 1}


def test_a_key_may_ask_as_often_as_the_operator_says(strict: Running) -> None:
    before = strict.metrics()
    asked = [
        strict.post("/tokenize", {"prompt": "hi"}, headers={"authorization": f"Bearer {key}"})
        for key in ("sesame", "sesame", "sesame", "sesame", "sezam", "wrong")
    ]

    assert [answer.status_code for answer in asked] == [200, 200, 200, 429, 200, 401]
    assert asked[3].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(asked[3].headers["retry-after"]) <= 20
    assert grown(strict, before).items() >= {"reason=rate_limited": 1, "reason=auth": 1}.items()


def test_what_is_refused_below_the_application_is_counted(strict: Running) -> None:
    before = strict.metrics()
    raw(strict, b"nonsense\r\n\r\n")
    raw(strict, asked("/" + "a" * 20_000))

    assert grown(strict, before) == {
        "handler=unknown method=other status=400": 1,
        "handler=unknown method=other status=431": 1,
        "reason=invalid": 1,
        "reason=too_large": 1,
    }


def test_a_failure_nobody_expected_tells_nothing_and_has_an_id_and_the_page_s_origin(tmp_path: Path) -> None:
    class Broken(Metrics):
        def expose(self) -> bytes:
            raise KeyError("a secret of the house")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/metrics", headers={"origin": PAGE, "x-request-id": "abc"})

    metrics = Broken(MODEL, 1)
    app = built(tmp_path, metrics, cors_origins=PAGE)
    answer = asyncio.run(ask())

    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "abc"
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert b'status="500"' in Metrics.expose(metrics)
