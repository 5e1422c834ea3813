import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.auth import KEY_LABEL, ApiKeyGuard, is_open, open_paths

OPEN = open_paths(metrics=True, docs=False, playground=False)


class Door:
    """A guard over an application that answers 200 and keeps the scopes it was given."""

    def __init__(self, *keys: str) -> None:
        self.scopes: list[Scope] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            self.scopes.append(scope)
            await send({"type": "http.response.start", "status": 200, "headers": []})

        self.guard = ApiKeyGuard(app, keys, OPEN, lambda error: None)

    def status(self, path: str, authorization: bytes | None, x_api_key: bytes | None = None) -> int:
        answers: list[Message] = []

        async def receive() -> Message:
            raise AssertionError("the body was read before the key")

        async def send(message: Message) -> None:
            answers.append(message)

        sent = {b"authorization": authorization, b"x-api-key": x_api_key}
        headers = [(name, value) for name, value in sent.items() if value is not None]
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": headers}
        asyncio.run(self.guard(scope, receive, send))
        found: int = answers[0]["status"]
        return found


def status(path: str, authorization: bytes | None, keys: Sequence[str] = ("sesame",)) -> int:
    """What a request gets; 200 stands for passed on."""
    return Door(*keys).status(path, authorization)


@pytest.mark.parametrize("value", [b"Bearer sesame", b"bearer sesame", b"Bearer  sesame "])
def test_the_right_key_passes(value: bytes) -> None:
    assert status("/v1/models", value) == 200


@pytest.mark.parametrize("key", ["sesame", "sezam", "süsam"])
def test_any_of_several_keys_passes(key: str) -> None:
    assert status("/v1/models", b"Bearer " + key.encode(), ("sesame", "sezam", "süsam")) == 200


@pytest.mark.parametrize(
    "value", [None, b"", b"Bearer", b"Bearer ", b"Bearer sesam", b"Basic sesame", b"sesame", b"Bearer \xff"]
)
@pytest.mark.parametrize("keys", [("sesame",), ("sezam", "sesame")])
def test_anything_else_is_a_401(value: bytes | None, keys: Sequence[str]) -> None:
    assert status("/v1/models", value, keys) == 401


def test_several_keys_at_once_are_none_of_them() -> None:
    assert status("/v1/models", b"Bearer sesame,sezam", ("sesame", "sezam")) == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/nothing", "//health", "/Health", "/health/", "/v1/../health"])
def test_every_path_is_closed_by_default(path: str) -> None:
    assert status(path, None) == 401


def test_a_body_is_not_read_where_no_key_is_asked_for() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(await receive())

    async def receive() -> Message:
        raise AssertionError("a stranger's body was read")

    async def send(message: Message) -> None:
        raise AssertionError("nobody answers here")

    scope = {"type": "http", "method": "POST", "path": "/health", "headers": []}
    asyncio.run(ApiKeyGuard(app, ["sesame"], OPEN, lambda error: None)(scope, receive, send))

    assert heard == [{"type": "http.request", "body": b"", "more_body": False}]


@pytest.mark.parametrize("path", sorted(OPEN))
def test_probes_need_no_key(path: str) -> None:
    assert status(path, None) == 200


@pytest.mark.parametrize("authorization", [None, b"Basic cHJveHk6c2VjcmV0", b"Bearer another"])
def test_a_key_may_come_in_a_header_of_its_own(authorization: bytes | None) -> None:
    assert Door("sezam", "sesame").status("/v1/models", authorization, b"sesame") == 200
    assert Door("sezam", "sesame").status("/v1/models", authorization, b"sesam") == 401
    assert Door("sesame").status("/v1/models", authorization, b"Bearer sesame") == 401


def test_the_probes_are_open_and_the_rest_as_the_operator_says() -> None:
    assert open_paths(metrics=False, docs=False, playground=False) == {"/health", "/ready"}
    assert open_paths(metrics=True, docs=False, playground=False) == {"/health", "/ready", "/metrics"}
    assert {"/docs", "/redoc", "/openapi.json"} < open_paths(metrics=False, docs=True, playground=False)
    assert {"/", "/playground/"} < open_paths(metrics=False, docs=False, playground=True)


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/docs", "/playground", "//", "/index.html"])
def test_an_open_root_opens_nothing_below_it(path: str) -> None:
    assert not is_open(path, open_paths(metrics=False, docs=False, playground=True))


def test_a_folder_opens_what_is_below_it_and_a_file_only_itself() -> None:
    paths = open_paths(metrics=True, docs=True, playground=False)

    assert is_open("/static-offline-docs/redoc.standalone.js", paths)
    assert not any(
        is_open(path, paths) for path in ("/docs/", "/docs/x", "/docsx", "/static-offline-docsx", "/metrics/")
    )


@pytest.mark.parametrize("value", [None, b"Bearer ", b"Bearer x"])
def test_a_server_without_a_key_takes_whatever_clients_send(value: bytes | None) -> None:
    assert status("/v1/models", value, ()) == 200


def test_clients_are_told_apart_by_their_keys_and_the_keys_kept_nowhere() -> None:
    door = Door("sesame", "sezam")
    for key in (b"sesame", b"sezam", b"sesame"):
        assert door.status("/v1/models", b"Bearer " + key) == 200
    labels = [scope[KEY_LABEL] for scope in door.scopes]

    assert labels[0] == labels[2] != labels[1]
    assert not any(key in text for key in ("sesame", "sezam") for text in (*labels, str(vars(door.guard))))
    again = Door("sesame", "sezam")
    again.status("/v1/models", b"Bearer sesame")
    assert again.scopes[0][KEY_LABEL] not in labels


@pytest.mark.parametrize("keys", [(), ("sesame",)])
def test_without_several_keys_there_is_nobody_to_tell_apart(keys: Sequence[str]) -> None:
    door = Door(*keys)

    assert door.status("/v1/models", b"Bearer sesame") == 200
    assert KEY_LABEL not in door.scopes[0]
