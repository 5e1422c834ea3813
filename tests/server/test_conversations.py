import json
from typing import Any

import pytest
from starlette.datastructures import Headers

from server.conversations import conversation_key

SYSTEM = {"role": "system", "content": "You are terse."}
HELLO = {"role": "user", "content": "Hello"}


def key(body: Any, **headers: str) -> str:
    return conversation_key(Headers({name.replace("_", "-"): value for name, value in headers.items()}), encoded(body))


def encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def test_every_turn_of_a_chat_has_the_key_of_its_first() -> None:
    first = {"messages": [SYSTEM, HELLO], "temperature": 0}
    second = {"messages": [SYSTEM, HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Bye"}]}

    assert key(first) == key(second) != ""


def test_chats_that_begin_otherwise_have_other_keys() -> None:
    keys = {
        key({"messages": [SYSTEM, HELLO]}),
        key({"messages": [HELLO]}),
        key({"messages": [SYSTEM, {"role": "user", "content": "Good day"}]}),
        key({"messages": [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}),
    }

    assert len(keys) == 4


def test_a_completion_is_known_by_the_beginning_of_its_prompt() -> None:
    opening = "import os\n" * 30

    assert key({"prompt": opening + "os."}) == key({"prompt": opening + "sys."})
    assert key({"prompt": "os."}) != key({"prompt": "sys."})
    assert key({"prompt": [1, 2, 3]}) != ""


def test_what_the_client_calls_its_conversation_goes_before_how_it_begins() -> None:
    named, other = {"messages": [HELLO], "prompt_cache_key": "a"}, {"messages": [SYSTEM], "prompt_cache_key": "a"}

    assert key(named) == key(other) != key({"messages": [HELLO]})
    assert key(named, x_session_id="s") == key({"messages": [HELLO]}, x_session_id="s") != key(named)
    assert key({"messages": [HELLO], "prompt_cache_key": None}) == key({"messages": [HELLO]})


def test_no_two_api_keys_share_a_conversation() -> None:
    body = {"messages": [HELLO]}

    assert len({key(body), key(body, authorization="Bearer a"), key(body, authorization="Bearer b")}) == 3


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b"{}", b'{"messages": 1}', b'{"messages": [1]}', b"[" * 100_000, b'{"messages": []}'],
)
def test_a_request_that_says_nothing_of_a_conversation_has_no_key(body: bytes) -> None:
    assert key(body) == ""
