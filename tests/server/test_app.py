import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import fake_engine
from tests.server.running import MODEL, Running, running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER: list[Any] = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": USER, **fields}


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hi", **fields}


def assert_shaped(text: str) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"]
    assert isinstance(error["type"], str)
    return error


# path, raw body, what the message or param must name
BROKEN_BODIES = [
    ("", "JSON"),
    ("{", "JSON"),
    ("null", "JSON object"),
    ("[]", "JSON object"),
    ('"text"', "JSON object"),
    ("[" * 100_000 + "]" * 100_000, "JSON"),
    ('{"model": "tiny", "prompt": "hi", "seed": ' + "9" * 5000 + "}", "JSON"),
    ('{"model": "tiny", "prompt": "hi", "temperature": NaN}', "temperature"),
    ('{"model": "tiny", "prompt": "hi", "temperature": 1e999}', "temperature"),
    ('{"model": "tiny", "prompt": "hi", "top_p": -Infinity}', "top_p"),
    ('{"model": "tiny", "prompt": "hi", "speculation": {"epsilon": NaN}}', "epsilon"),
    ('{"model": "tiny", "prompt": "\\ud800"}', "surrogate"),
    ('{"model": "\\ud800", "prompt": "hi"}', "surrogate"),
    ('{"model": "tiny", "prompt": "hi", "stop": ["\\udfff"]}', "stop"),
    ('{"model": "tiny", "prompt": "hi", "\\ud800": 1}', "surrogate"),
]


@pytest.mark.parametrize(("body", "named"), BROKEN_BODIES)
def test_a_broken_body_is_a_shaped_400(server: Running, body: str, named: str) -> None:
    answer = server.post(COMPLETIONS, None, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert named in assert_shaped(answer.text)["message"]


MALFORMED = [
    (COMPLETIONS, completion(model=None), "model"),
    (COMPLETIONS, {"prompt": "hi"}, "model"),
    (COMPLETIONS, {"model": MODEL}, "prompt"),
    (COMPLETIONS, completion(prompt=None), "prompt"),
    (COMPLETIONS, completion(prompt=""), "prompt"),
    (COMPLETIONS, completion(prompt=[]), "prompt"),
    (COMPLETIONS, completion(prompt=[[]]), "prompt"),
    (COMPLETIONS, completion(prompt=["a", ""]), "prompt"),
    (COMPLETIONS, completion(prompt=["a"] * 129), "prompt"),
    (COMPLETIONS, completion(prompt=["a"] * 65, n=2), "prompt"),
    (COMPLETIONS, completion(prompt=["a", 1]), "prompt"),
    (COMPLETIONS, completion(prompt=[1, True]), "prompt"),
    (COMPLETIONS, completion(prompt=[-1]), "prompt"),
    (COMPLETIONS, completion(prompt=[300]), "prompt"),
    (COMPLETIONS, completion(prompt=[2**70]), "prompt"),
    (COMPLETIONS, completion(prompt="word " * 2000), "prompt"),
    (COMPLETIONS, completion(max_tokens=0), "max_tokens"),
    (COMPLETIONS, completion(max_tokens="16"), "max_tokens"),
    (COMPLETIONS, completion(max_tokens=2**80), "max_tokens"),
    (COMPLETIONS, completion(temperature=True), "temperature"),
    (COMPLETIONS, completion(temperature="0.5"), "temperature"),
    (COMPLETIONS, completion(temperature=2.1), "temperature"),
    (COMPLETIONS, completion(temperature=10**400), "temperature"),
    (COMPLETIONS, completion(top_p=1.5), "top_p"),
    (COMPLETIONS, completion(min_p=-0.1), "min_p"),
    (COMPLETIONS, completion(top_k=-2), "top_k"),
    (COMPLETIONS, completion(seed=2**64), "seed"),
    (COMPLETIONS, completion(seed=1.5), "seed"),
    (COMPLETIONS, completion(stop=["x"] * 17), "stop"),
    (COMPLETIONS, completion(stop=[1]), "stop"),
    (COMPLETIONS, completion(stop_token_ids=[300]), "stop_token_ids"),
    (COMPLETIONS, completion(stop_token_ids=[True]), "stop_token_ids[0]"),
    (COMPLETIONS, completion(stop_token_ids="5"), "stop_token_ids"),
    (COMPLETIONS, completion(stream="yes"), "stream"),
    (COMPLETIONS, completion(stream_options={"include_usage": True}), "stream_options"),
    (COMPLETIONS, completion(stream=True, stream_options=[]), "stream_options"),
    (COMPLETIONS, completion(speculation={"mode": "psychic"}), "speculation.mode"),
    (COMPLETIONS, completion(speculation={"nodes": 4}), "speculation.nodes"),
    (COMPLETIONS, completion(speculation={"max_nodes": 0}), "speculation.max_nodes"),
    (COMPLETIONS, completion(speculation={"epsilon": 2.0}), "speculation.epsilon"),
    (COMPLETIONS, completion(n=0), "n"),
    (COMPLETIONS, completion(n=True), "n"),
    (COMPLETIONS, completion(n=10**6), "n"),
    (COMPLETIONS, completion(best_of=10**9), "best_of"),
    (COMPLETIONS, completion(n=3, best_of=2), "best_of"),
    (CHAT, chat(best_of=2), "best_of"),
    (COMPLETIONS, completion(logprobs=21), "logprobs"),
    (COMPLETIONS, completion(logprobs=True), "logprobs"),
    (COMPLETIONS, completion(top_logprobs=2), "top_logprobs"),
    (COMPLETIONS, completion(echo="yes"), "echo"),
    (COMPLETIONS, completion(suffix="end"), "suffix"),
    (COMPLETIONS, completion(logit_bias={"300": 1}), "logit_bias"),
    (COMPLETIONS, completion(logit_bias={"five": 1}), "logit_bias"),
    (COMPLETIONS, completion(logit_bias={"5": 101}), "logit_bias[5]"),
    (COMPLETIONS, completion(logit_bias=[5]), "logit_bias"),
    (COMPLETIONS, completion(logit_bias={str(token): 1 for token in range(1025)}), "logit_bias"),
    (COMPLETIONS, completion(presence_penalty=2.5), "presence_penalty"),
    (COMPLETIONS, completion(repetition_penalty=0), "repetition_penalty"),
    (COMPLETIONS, completion(min_tokens=-1), "min_tokens"),
    (COMPLETIONS, completion(frequency_penalty="0"), "frequency_penalty"),
    (CHAT, chat(messages=[]), "messages"),
    (CHAT, chat(messages="hi"), "messages"),
    (CHAT, chat(messages=["hi"]), "messages[0]"),
    (CHAT, chat(messages=[{"content": "hi"}]), "messages[0].role"),
    (CHAT, chat(messages=[{"role": "wizard", "content": "hi"}]), "messages[0].role"),
    (CHAT, chat(messages=[{"role": "user", "content": 7}]), "messages[0].content"),
    (CHAT, chat(messages=[{"role": "user", "content": ["hi"]}]), "messages[0].content"),
    (
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        "messages",
    ),
    (CHAT, chat(messages=[{"role": "user", "content": "word " * 2000}]), "messages"),
    (CHAT, chat(max_completion_tokens=0), "max_completion_tokens"),
    (CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}]), "tools"),
    (CHAT, chat(tool_choice="required"), "tool_choice"),
    (CHAT, chat(response_format={"type": "json_schema"}), "response_format"),
    (CHAT, chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": 1}}}), "response_format"),
    (CHAT, chat(guided_regex="(?=a)"), "guided_regex"),
    (CHAT, chat(guided_json={"not": {}}), "guided_json"),
    (CHAT, chat(guided_grammar="start: nowhere"), "guided_grammar"),
    (CHAT, chat(guided_regex="a", guided_choice=["b"]), "guided_choice"),
    (CHAT, chat(prediction={"type": "text", "content": "x"}), "prediction.type"),
    (CHAT, chat(prediction={"type": "content", "content": [{"type": "image_url"}]}), "prediction"),
    (CHAT, chat(modalities=["text", "audio"]), "modalities"),
    (CHAT, chat(audio={"voice": "x"}), "audio"),
    (CHAT, chat(logprobs=5), "logprobs"),
    (CHAT, chat(top_logprobs=5), "top_logprobs"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    (CHAT, chat(echo=True), "echo"),
]


@pytest.mark.parametrize("is_streaming", [False, True])
@pytest.mark.parametrize(("path", "body", "param"), MALFORMED)
def test_a_malformed_request_is_a_400_that_names_the_field(
    server: Running, path: str, body: dict[str, Any], param: str, is_streaming: bool
) -> None:
    body = {"stream": True, **body} if is_streaming and "stream_options" not in body else body
    answer = server.post(path, None, content=json.dumps(body), headers={"content-type": "application/json"})

    assert answer.status_code == 400
    error = assert_shaped(answer.text)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_values_without_effect_are_never_refused(server: Running) -> None:
    neutral = {
        "n": 1, "best_of": 1, "logprobs": False, "top_logprobs": 0, "echo": False, "suffix": "", "logit_bias": {},
        "presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_tokens": 0, "tools": [],
        "tool_choice": "auto", "response_format": {"type": "text"}, "modalities": ["text"], "top_k": -1,
        "prediction": None, "audio": None, "user": "me", "metadata": {"a": "b"}, "store": True,
    }  # fmt: skip

    for path, body in ((CHAT, chat(**neutral)), (COMPLETIONS, completion(**neutral))):
        answer = server.post(path, body)
        assert answer.status_code == 200, answer.text
        assert "x-ignored-fields" not in answer.headers


def test_unknown_fields_are_ignored_and_named_in_a_header(server: Running) -> None:
    body = chat(**{"cache_salt": 1, "évil\r\nx: y": 2, "a" * 65: 3, "guidance": None})

    assert server.post(CHAT, body).headers["x-ignored-fields"] == "cache_salt, guidance, +2"
    assert server.post(CHAT, {**body, "stream": True}).headers["x-ignored-fields"] == "cache_salt, guidance, +2"


def test_no_more_than_sixteen_ignored_fields_are_named(server: Running) -> None:
    answer = server.post(CHAT, chat(**{f"f{number:02}": 0 for number in range(20)}))

    assert answer.headers["x-ignored-fields"] == ", ".join([*(f"f{number:02}" for number in range(16)), "+4"])


def test_an_overflow_says_so_in_the_words_that_clients_look_for(server: Running) -> None:
    answer = server.post(COMPLETIONS, completion(prompt=[5] * 400, max_tokens=7))
    error = assert_shaped(answer.text)

    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith(
        "This model's maximum context length is 400 tokens. However, you requested 407 tokens"
    )


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_unknown_model_is_a_404(server: Running, path: str) -> None:
    answer = server.post(path, {**chat(), **completion(), "model": "gpt-4o"})

    assert answer.status_code == 404
    assert assert_shaped(answer.text)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nothing", 404, "there is no GET /nothing here; the base URL of clients ends in /v1, and"),
        ("POST", "/v1/v1/completions", 404, "there is no POST /v1/v1/completions here; "),
        ("GET", CHAT, 405, f"there is no GET {CHAT} here; the route takes POST"),
        ("DELETE", "/v1/models", 405, "there is no DELETE /v1/models here; the route takes GET"),
        ("GET", "/v1/models/x/y", 404, "the model 'x/y' does not exist here; served: tiny"),
    ],
)
def test_a_wrong_route_or_method_is_named_with_the_way_out(
    server: Running, method: str, path: str, status: int, message: str
) -> None:
    with server.openai() as client:
        answer = client._client.request(method, f"{server.url}{path}")

    assert answer.status_code == status
    assert assert_shaped(answer.text)["message"].startswith(message)


def test_what_cannot_be_given_is_named_and_not_the_whole_field(server: Running) -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}
    answer = server.post(CHAT, chat(messages=[{"role": "user", "content": [picture]}]))
    error = assert_shaped(answer.text)

    assert error["message"] == "a part of type 'image_url' is not supported: the model reads text only"
    assert (error["param"], error["code"]) == ("messages", "unsupported_parameter")


def test_a_misspelt_part_of_a_field_is_told_where_all_are_listed(server: Running) -> None:
    error = assert_shaped(server.post(CHAT, chat(speculation={"nodes": 8})).text)

    assert error["message"] == "speculation.nodes: there is no such field; GET /docs lists those there are"


def test_a_body_that_is_too_large_is_a_413_declared_or_not(server: Running) -> None:
    def chunks() -> Any:
        for _ in range(30):
            yield b"x" * 100_000

    for content in (b"x" * 2_100_000, chunks()):
        answer = server.post(COMPLETIONS, None, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert assert_shaped(answer.text)["code"] == "request_too_large"


def test_a_body_of_another_type_is_told_which_one_is_wanted(server: Running) -> None:
    answer = server.post(COMPLETIONS, None, content="hello", headers={"content-type": "text/plain"})

    assert answer.status_code == 400
    assert "Content-Type: application/json" in assert_shaped(answer.text)["message"]


def test_a_giant_header_is_refused(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Big: " + b"x" * 200_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 4")


def test_request_ids_are_echoed_and_never_raw(server: Running) -> None:
    assert server.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert server.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_the_schema_of_the_api_can_be_read(server: Running) -> None:
    paths = server.get("/openapi.json").json()["paths"]

    assert {CHAT, COMPLETIONS, "/v1/models", "/health", "/ready", "/metrics"} <= set(paths)
    assert "text/event-stream" in paths[CHAT]["post"]["responses"]["200"]["content"]


def test_a_key_is_asked_for_before_anything_is_read(tmp_path: Path) -> None:
    with running(tmp_path, api_key="sesame") as server:
        refused = server.post(CHAT, None, content="{", headers={"authorization": "Bearer wrong"})
        assert refused.status_code == 401
        assert assert_shaped(refused.text)["code"] == "invalid_api_key"
        assert server.post(CHAT, chat(), headers={"authorization": "Bearer sesame"}).status_code == 200
        assert [server.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]
        assert [server.get(path).status_code for path in ("/nothing", "/docs", "/v1/models")] == [401, 401, 401]
        assert server.metrics()["medusa_requests_rejected_total reason=auth"] == 4


PAGE = "http://localhost:3000"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def preflight(server: Running, origin: str = PAGE) -> httpx.Response:
    return httpx.options(f"{server.url}{CHAT}", headers={**PREFLIGHT, "origin": origin})


def test_a_page_of_a_named_origin_may_ask_and_read_what_it_is_told(tmp_path: Path) -> None:
    with running(tmp_path, api_key="sesame", cors_origins=PAGE, max_body_bytes=2048, queue_size=0) as server:
        allowed = preflight(server)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in allowed.headers

        from_page = {"origin": PAGE, "authorization": "Bearer sesame"}
        answers = [
            server.post(CHAT, chat(), headers=from_page),
            server.post(CHAT, chat(), headers={"origin": PAGE}),
            server.post(CHAT, {**chat(), "messages": []}, headers=from_page),
            server.post(CHAT, chat(user="x" * 4096), headers=from_page),
        ]
        body = {**completion(seed=fake_engine.ENDLESS, max_tokens=380), "stream": True}
        with httpx.stream("POST", f"{server.url}{COMPLETIONS}", json=body, headers=from_page) as stream:
            lines = stream.iter_lines()
            next(lines)
            answers.append(server.post(CHAT, chat(), headers=from_page))
            assert stream.headers["access-control-allow-origin"] == PAGE

        assert [answer.status_code for answer in answers] == [200, 401, 400, 413, 429]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == PAGE
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            assert {"x-request-id", "x-ignored-fields", "retry-after"} <= set(exposed)
            assert answer.headers["x-request-id"]
        assert server.metrics()["medusa_http_requests_total handler=unknown method=OPTIONS status=200"] == 1


def test_a_page_of_another_origin_may_not(tmp_path: Path) -> None:
    with running(tmp_path, cors_origins=PAGE) as server:
        assert preflight(server, "https://evil.example").status_code == 400
        answer = server.post(CHAT, chat(), headers={"origin": "https://evil.example"})

    assert "access-control-allow-origin" not in answer.headers


def test_any_origin_may_be_allowed_without_credentials(tmp_path: Path) -> None:
    with running(tmp_path, cors_origins="*") as server:
        answers = [preflight(server, "null"), server.post(CHAT, chat(), headers={"origin": "null"})]

    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


def test_no_page_may_unless_the_operator_says_so(server: Running) -> None:
    assert preflight(server).status_code == 405
    assert "access-control-allow-origin" not in server.post(CHAT, chat(), headers={"origin": PAGE}).headers


def cached_tokens(server: Running, key: str) -> int:
    answer = server.post(COMPLETIONS, completion(prompt="Hello world"), headers={"authorization": f"Bearer {key}"})
    found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def test_nobody_can_tell_from_the_cache_what_another_key_has_asked(tmp_path: Path) -> None:
    with running(tmp_path, api_key="sesame,sezam") as server:
        assert cached_tokens(server, "sesame") == 0
        assert cached_tokens(server, "sesame") > 0
        assert cached_tokens(server, "sezam") == 0
    with running(tmp_path, api_key="sesame") as server:
        cached_tokens(server, "sesame")
        assert cached_tokens(server, "sesame") > 0
