import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.auth import OPEN_PATHS, ApiKeyGuard


def status(path: str, authorization: bytes | None, key: str | None = "sesame") -> int:
    """What a request gets; 200 stands for passed on."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        raise AssertionError("the body was read before the key")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [] if authorization is None else [(b"authorization", authorization)]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(ApiKeyGuard(app, key, lambda error: None)(scope, receive, send))
    found: int = sent[0]["status"]
    return found


@pytest.mark.parametrize("value", [b"Bearer sesame", b"bearer sesame", b"Bearer  sesame "])
def test_the_right_key_passes(value: bytes) -> None:
    assert status("/v1/models", value) == 200


@pytest.mark.parametrize(
    "value", [None, b"", b"Bearer", b"Bearer ", b"Bearer sesam", b"Basic sesame", b"sesame", b"Bearer \xff"]
)
def test_anything_else_is_a_401(value: bytes | None) -> None:
    assert status("/v1/models", value) == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/nothing", "//health", "/Health", "/health/", "/v1/../health"])
def test_every_path_is_closed_by_default(path: str) -> None:
    assert status(path, None) == 401


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_probes_need_no_key(path: str) -> None:
    assert status(path, None) == 200


@pytest.mark.parametrize("value", [None, b"Bearer ", b"Bearer x"])
def test_a_server_without_a_key_takes_whatever_clients_send(value: bytes | None) -> None:
    assert status("/v1/models", value, key=None) == 200
