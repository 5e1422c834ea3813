"""What no client should send, to every endpoint that reads a body: each a shaped 4xx, and the server lives on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.server.running import MODEL, Running, running

CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
USER = {"role": "user", "content": "hi"}
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [USER]},
    COMPLETIONS: {"model": MODEL, "prompt": "hi"},
    TOKENIZE: {"prompt": "hi"},
    DETOKENIZE: {"tokens": [5]},
}
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Bad:
    """A request that is refused.

    content: bytes of the body, or what makes them piece by piece.
    param:   the field that is named, None where none is to blame.
    """

    path: str
    content: Any
    param: str | None = None
    status: int = 400
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))

    def __str__(self) -> str:
        shown = self.content[:60] if isinstance(self.content, bytes) else "..."
        return f"{self.method} {self.path} {shown!r}"


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def with_fields(path: str, **fields: Any) -> bytes:
    return json.dumps({**GOOD[path], **fields}).encode()


def chunks() -> Iterator[bytes]:
    for _ in range(30):
        yield b"x" * 100_000


# on every endpoint: bodies that are no JSON object
NO_OBJECTS = [
    b"",
    b"{",
    b"{'model': 'tiny'}",
    b"null",
    b"7",
    b'"text"',
    b"[]",
    b"[{}]",
    b"\xff\xfe\x00",
    b'{"model": "tiny", "prompt": "\xc3\x28"}',
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 100_000,
    b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}",
    b"hello=world",
]
# on every endpoint: objects that hold what is no text, however deep
NO_TEXT = [
    ('{"\\ud800": 1}', "?"),
    ('{"metadata": {"a": ["\\udfff"]}}', "metadata"),
    ('{"user": "\\ud83d"}', "user"),
]

# field, and values that are none of its kind
WRONG_KINDS: dict[str, dict[str, list[Any]]] = {
    COMPLETIONS: {
        "model": [None, 7, [], {}, True],
        "prompt": [None, 7, {}, [], [[]], True, [None], ["a", 5], [5, True], [300], [-1], [2**70], [1.5], [{}]],
        "max_tokens": ["16", 1.5, -1, 2**80, True, [], {}],
        "logprobs": [True, -1, 21, "1"],
        "echo": ["yes", 1, []],
        "suffix": [7, [], {}, "end"],
        "best_of": [0, 10**9, "2"],
    },
    CHAT: {
        "model": [None, 7, []],
        "messages": [None, "hi", {}, [], [None], [[]], [{}], [{"role": "wizard", "content": "a"}], [{"role": "user"}]],
        "max_completion_tokens": [0, -1, "5", 2**80],
        "max_tokens": [0, 1.5],
        "logprobs": [5, "true"],
        "top_logprobs": [3, -1, "1"],
        "continue_final_message": ["yes", True],
        "add_generation_prompt": ["no", 1],
        "chat_template_kwargs": [[], "x", {"tokenize": True}, {"thinking": [1]}, {"thinking": {}}],
    },
    TOKENIZE: {
        "prompt": [None, 7, ["a"], [5], {}],
        "messages": ["hi", [], [{"role": "wizard"}]],
        "add_special_tokens": ["no", 1],
        "return_token_strs": ["yes", 0],
        "model": [7],
    },
    DETOKENIZE: {"tokens": [None, 5, "5", [-1], [300], [2**31], [2**70], [True], ["5"], [1.5], [[5]]]},
}
# the same on both generation endpoints
GENERATION: dict[str, list[Any]] = {
    "temperature": ["0.5", True, -0.1, 2.1, 10**400, [], {}],
    "top_p": ["1", -0.1, 1.1, True],
    "top_k": [-2, 1.5, "5", 2**80],
    "min_p": [-0.1, 1.5],
    "n": [0, -1, 10**6, True, "5", 1.5],
    "seed": [1.5, 2**64, -(2**63) - 1, "7", True],
    "stop": [7, {}, [7], [None], ["x"] * 17],
    "stop_token_ids": ["5", [True], [300], [-1], [2**70], [5] * 1025],
    "presence_penalty": [2.5, "0"],
    "frequency_penalty": [-2.5, True],
    "repetition_penalty": [0, -1, 101],
    "logit_bias": [[5], "x", {"five": 1}, {"300": 1}, {"5": 101}, {"5": None}, {"-1": 1}, {"5": True}, {"0x5": 1}],
    "min_tokens": [-1, "5", 2**80],
    "ignore_eos": ["yes", 1],
    "stream": ["yes", 1, []],
    "stream_options": [{}, {"include_usage": True}, "x", []],
    "speculation": ["tree", [], {"mode": "psychic"}, {"nodes": 4}, {"max_nodes": 0}, {"epsilon": 2.0}],
    "timeout_s": [0, -1, "5", True],
    "chat_template": ["{{ 'a' * 300000000 }}"],
    "audio": [{"voice": "x"}],
    "web_search_options": [{"search_context_size": "low"}],
}
NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999"]


def everything() -> Iterator[Bad]:
    for path in GOOD:
        for content in NO_OBJECTS:
            yield Bad(path, content)
        for text, param in NO_TEXT:
            inside = json.dumps(GOOD[path])[:-1] + ", " + text[1:]
            yield Bad(path, raw(inside), param)
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            yield Bad(path, with_fields(path), headers={"content-type": kind})
        yield Bad(path, b"x" * 2_100_000, status=413)
        yield Bad(path, chunks, status=413)
        for method in ("GET", "PUT", "PATCH", "DELETE", "BREW"):
            yield Bad(path, b"", status=405, method=method)
        kinds = {**WRONG_KINDS[path], **(GENERATION if path in (CHAT, COMPLETIONS) else {})}
        for name, values in kinds.items():
            for value in values:
                yield Bad(path, with_fields(path, **{name: value}), name)
    for path in (CHAT, COMPLETIONS):
        for name in ("temperature", "top_p", "frequency_penalty", "timeout_s"):
            for number in NO_NUMBERS:
                yield Bad(path, raw(json.dumps(GOOD[path])[:-1] + f', "{name}": {number}}}'), name)
        yield Bad(path, with_fields(path, model="gpt-4o"), "model", status=404)
    yield Bad(TOKENIZE, with_fields(TOKENIZE, model="gpt-4o"), "model", status=404)
    yield Bad(TOKENIZE, b"{}", "prompt")
    yield Bad(TOKENIZE, with_fields(TOKENIZE, messages=[USER]), "prompt")
    yield Bad(COMPLETIONS, with_fields(COMPLETIONS, prompt="word " * 2000), "prompt")
    yield Bad(COMPLETIONS, with_fields(COMPLETIONS, prompt=["a"] * 129), "prompt")
    yield Bad(CHAT, with_fields(CHAT, messages=[0] * 300_000), "messages")
    for part in (
        {"type": "image_url", "image_url": {"url": "http://x/"}},
        {"type": "input_audio"},
        7,
        {},
        {"type": "text"},
    ):
        yield Bad(CHAT, with_fields(CHAT, messages=[{"role": "user", "content": [part]}]), "messages")
    for call in (7, {}, {"type": "custom", "custom": {}}, {"function": {"name": "f"}}):
        yield Bad(CHAT, with_fields(CHAT, messages=[{"role": "assistant", "tool_calls": [call]}]), "messages")
    for path in (
        "/v1",
        "/v1/",
        "/v1/embeddings",
        "/V1/models",
        "/v1//models",
        "/v1/chat/completions/x",
        "/%2e%2e",
    ):
        yield Bad(path, b"", status=404, method="GET")
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        yield Bad(path, b"{}", status=405)


EVERYTHING = list(everything())


@dataclass(frozen=True)
class Aftermath:
    """What a server answered to all of it, and how it was afterwards."""

    answers: list[httpx.Response]
    good: dict[str, httpx.Response]
    metrics: dict[str, float]


def send(client: httpx.Client, bad: Bad) -> httpx.Response:
    content = bad.content() if callable(bad.content) else bad.content
    return client.request(bad.method, bad.path, content=content, headers=bad.headers)


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    with running(tmp_path_factory.mktemp("malformed")) as server:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            answers = [send(client, bad) for bad in EVERYTHING]
        yield Aftermath(answers, {path: server.post(path, body) for path, body in GOOD.items()}, server.metrics())


@pytest.mark.parametrize("number", range(len(EVERYTHING)), ids=[str(bad) for bad in EVERYTHING])
def test_a_bad_request_is_a_shaped_error_that_names_its_field(aftermath: Aftermath, number: int) -> None:
    bad, answer = EVERYTHING[number], aftermath.answers[number]

    assert answer.status_code == bad.status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 1000
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    if bad.param is None:
        assert error["param"] is None
    else:
        assert error["param"].replace(".", "[").partition("[")[0] == bad.param


def test_the_server_answers_after_all_of_it_and_has_never_failed(aftermath: Aftermath) -> None:
    counted = {
        name: value for name, value in aftermath.metrics.items() if name.startswith("medusa_http_requests_total")
    }

    assert {path: answer.status_code for path, answer in aftermath.good.items()} == dict.fromkeys(GOOD, 200)
    assert [name for name, count in counted.items() if "status=5" in name and count > 0] == []
    assert sum(counted.values()) >= len(EVERYTHING) > 400
    assert aftermath.metrics["medusa_worker_restarts_total reason=crash"] == 0
    assert aftermath.metrics["medusa_num_requests_running"] == 0


def test_what_is_malformed_here_is_well_formed_but_for_one_thing(server: Running) -> None:
    for path, body in GOOD.items():
        assert server.post(path, body).status_code == 200, path
