"""What stands in the body of a request and became a hole in other servers: the attack, and that nothing comes of it.

tests/server/test_attacks.py has what comes before the body; docs/operations.md has the whole list.
"""

import gzip
import json
import socket
from typing import Any

import httpx
import pytest

from tests.server.running import MODEL, Running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
PATIENCE_S = 20.0


def numbers_of(document: dict[str, Any], name: str) -> list[str]:
    """The fields of a request that may hold a number."""

    def is_number(schema: dict[str, Any]) -> bool:
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return bool({"integer", "number"} & set(kinds)) or any(map(is_number, schema.get("anyOf", [])))

    fields = document["components"]["schemas"][name]["properties"]
    return sorted(field for field, schema in fields.items() if is_number(schema))


HOSTILE_NUMBERS = ["-1", "-0.0", "9223372036854775808", "-9223372036854775809", "1e308", "-1e308", "1e400", "NaN",
                   "Infinity", "-Infinity", "1e-320", "0.1", "1" * 400, "true", '"1"', "[1]"]  # fmt: skip


@pytest.mark.parametrize(("path", "name"), [(CHAT, "ChatRequest"), (COMPLETIONS, "CompletionRequest")])
def test_every_number_is_bounded(server: Running, path: str, name: str) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": MESSAGES} if path == CHAT else {"model": MODEL, "prompt": "hi"}
    fields = numbers_of(server.get("/openapi.json").json(), name)
    assert {"temperature", "top_p", "top_k", "seed", "n", "max_tokens"} <= set(fields)
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        for field in fields:
            for number in HOSTILE_NUMBERS:
                content = json.dumps({"max_tokens": 2, **body})[:-1] + f', "{field}": {number}}}'
                answer = client.post(path, content=content, headers={"content-type": "application/json"})
                # who gives a request no time gets a 504
                allowed = {200, 400, 504} if field == "timeout_s" else {200, 400}
                assert answer.status_code in allowed, f"{field} = {number[:30]}: {answer.text}"
        assert client.post(path, json={"max_tokens": 2, **body}).status_code == 200


def nested(depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def exponential(levels: int) -> Any:
    """Each level names the one below twice."""
    both = {f"l{n}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/l{n - 1}"}] * 2} for n in range(1, levels)}
    return {"$ref": f"#/$defs/l{levels - 1}", "$defs": {"l0": {"type": "integer"}, **both}}


HOSTILE_FORMS: dict[str, dict[str, Any]] = {
    "nested 60 deep": {"guided_json": nested(60)},
    "nested 400 deep": {"guided_json": nested(400)},
    "3,000 properties": {"guided_json": {"type": "object", "properties": {f"p{n}": {} for n in range(3000)}}},
    "50,000 values": {"guided_json": {"enum": [f"value {n}" for n in range(50_000)]}},
    "exponential references": {"guided_json": exponential(30)},
    "a reference to itself": {"guided_json": {"$ref": "#"}},
    "a reference to nothing": {"guided_json": {"$ref": "#/nowhere"}},
    "a reference to a file": {"guided_json": {"$ref": "file:///etc/passwd"}},
    "a reference to a host": {"guided_json": {"$ref": "http://127.0.0.1:1/schema"}},
    "an unknown type": {"guided_json": {"type": "wizard"}},
    "a type that is none": {"guided_json": {"type": {"a": 1}}},
    "a bad pattern": {"guided_json": {"type": "string", "pattern": "("}},
    "a pattern that looks around": {"guided_json": {"type": "string", "pattern": "(?<=a)b"}},
    "nested repeats": {"guided_regex": "^(a{1,1000}){1,1000}$"},
    "a catastrophic pattern": {"guided_regex": "(a+)+$"},
    "a pattern of 100 KB": {"guided_regex": "a" * 100_000},
    "groups without end": {"guided_regex": "(" * 5000 + ")" * 5000},
    "a grammar that eats itself": {"guided_grammar": "start: start start | start"},
    "tools of junk": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 5}}}],
                      "tool_choice": "required"},
    "tools with a bad pattern": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"a": {"type": "string", "pattern": "["}}}}}], "tool_choice": "required"},
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE_FORMS)
def test_a_hostile_form_is_followed_or_refused_and_the_server_lives_on(server: Running, what: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2, **HOSTILE_FORMS[what]}
    answer = server.post(CHAT, body)

    assert answer.status_code in (200, 400), answer.text
    assert len(answer.text) < 4000
    assert server.post(CHAT, {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize(
    "model", ["../../etc/passwd", "/etc/passwd", "https://evil.example/m", "..", "a/../../b", "x" * 10**6]
)
def test_a_request_names_a_model_and_never_a_file(server: Running, model: str) -> None:
    answers = [server.post(CHAT, {"model": model, "messages": MESSAGES}), server.get(f"/v1/models/{model[:1000]}")]

    for answer in answers:
        assert answer.status_code == 404
        assert len(answer.text) < 1000


@pytest.mark.parametrize("scheme", ["http", "ftp"])
@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url"])
def test_no_address_in_a_message_is_ever_visited(server: Running, kind: str, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/x.png"
        part = {"type": kind, kind: {"url": url, "file_url": url, "data": url, "format": "wav"}}
        answer = server.post(CHAT, {"model": MODEL, "messages": [{"role": "user", "content": [part]}]})

        assert answer.status_code == 400
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_body_is_not_unpacked(server: Running) -> None:
    bomb = gzip.compress(b" " * 1_900_000 + b'{"prompt": "hi"}')
    headers = {"content-type": "application/json", "content-encoding": "gzip"}

    assert server.post("/tokenize", None, content=bomb, headers=headers).status_code == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template": "{{ 'a' * 300000000 }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template_kwargs": {"tools": [{}]}},
        {"chat_template_kwargs": {"messages": "x"}},
        {"chat_template_kwargs": {"__class__": 1}},
    ],
    ids=str,
)
def test_a_request_brings_no_template_and_changes_none(server: Running, fields: dict[str, Any]) -> None:
    answer = server.post(CHAT, {"model": MODEL, "messages": MESSAGES, "max_tokens": 2, **fields})

    assert answer.status_code == 400
    assert next(iter(fields)) in answer.json()["error"]["param"]


def test_words_that_look_like_a_template_are_words(server: Running) -> None:
    content = "{{7*7}}{%set_a=cycler%}{{a.__init__.__globals__}}"
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "return_token_strs": True}
    text = "".join(server.post("/tokenize", body).json()["token_strs"])

    assert f"user\n{content}<|end|>".replace("\n", "Ċ") in text
