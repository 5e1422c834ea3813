"""The demo model through the real server: forms, forced calls, predictions; with speculation and without."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import LengthFinishReasonError, OpenAI
from pydantic import BaseModel, ConfigDict, Field

from server.worker.client import ENGINE_FACTORY
from tests.server.running import Running, running
from tests.server.test_calling import TEACH_HERMES

DEMO = Path(__file__).parents[2] / "medusa_core" / "demo" / "checkpoint"
QUESTION: Any = [{"role": "user", "content": "What does textwrap.dedent do?"}]
CHAT = "/v1/chat/completions"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["module", "🙂 class", "function"]
    lines: int


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=12)
    parts: list[Part] = Field(max_length=2)
    public: bool


ENTRY_FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "entry", "strict": True, "schema": Entry.model_json_schema()},
}
SEARCH: Any = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "maxLength": 20}, "limit": {"enum": [5, 10]}},
            "required": ["query", "limit"],
            "additionalProperties": False,
        },
    },
}
STRICT: Any = {"type": "function", "function": {**SEARCH["function"], "strict": True}}
OPEN: Any = {"type": "function", "function": {"name": "open_file"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The demo model, with a template that offers tools as Hermes' does; without tools it is the model's own."""
    template = tmp_path_factory.mktemp("template") / "chat_template.jinja"
    template.write_text(TEACH_HERMES + (DEMO / "chat_template.jinja").read_text())
    with running(DEMO, ENGINE_FACTORY, served_model_name="demo", threads=1, chat_template=template) as server:
        yield server


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with server.openai() as client:
        yield client


def ask(server: Running, **fields: Any) -> dict[str, Any]:
    answer = server.post(CHAT, {"model": "demo", "messages": QUESTION, "max_tokens": 150, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


FORMS: dict[str, dict[str, Any]] = {
    "schema": {"response_format": ENTRY_FORMAT},
    "regex": {"guided_regex": r"[a-z]{3,8}\.[a-z]{3,8} \(v[0-9]\)"},
    "choice": {"guided_choice": ["it removes whitespace", "it adds whitespace", "no idea"]},
    "grammar": {"guided_grammar": 'start: "dedent" ("(" ARG ")")?\nARG: /[a-z]{1,6}/'},
    "call": {"tools": [SEARCH, OPEN], "tool_choice": "required"},
    "named call": {"tools": [SEARCH, OPEN], "tool_choice": {"type": "function", "function": {"name": "search"}}},
    "strict tools": {"tools": [STRICT], "max_tokens": 60},
    "prediction": {"prediction": {"type": "content", "content": "Remove any common leading tabs from every line"}},
    "stop strings": {"stop": ["white", "the"], "max_tokens": 60},
    "several answers": {"n": 3, "max_tokens": 40},
    "filters": {"top_p": 0.8, "min_p": 0.05, "top_k": 50, "max_tokens": 60},
    "penalties and bias": {
        "frequency_penalty": 1.0,
        "repetition_penalty": 1.2,
        "logit_bias": {"300": 5, "301": -100},
        "min_tokens": 30,
        "max_tokens": 60,
    },
    "schema and prediction": {
        "response_format": ENTRY_FORMAT,
        "prediction": {"type": "content", "content": '{"name": "textwrap", "parts": [{"kind": "module", "lines": 1}]'},
    },
}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)
def test_a_form_reads_the_same_with_speculation_and_without_streamed_and_whole(
    server: Running, fields: dict[str, Any], temperature: float
) -> None:
    common = {"max_tokens": 150, **fields, "temperature": temperature, "seed": 4, "presence_penalty": 0.2}
    answers = [ask(server, **common, speculation={"mode": mode}) for mode in ("tree", "chain", "off")]
    body = {"model": "demo", "messages": QUESTION, **common, "stream": True}
    events = server.post(CHAT, body).text.splitlines()
    streamed = [json.loads(line[6:])["choices"][0] for line in events if line.startswith("data: {")]

    for answer in answers:
        for choice in answer["choices"]:
            for call in choice["message"].get("tool_calls", []):
                call["id"] = ""
    assert answers[0]["choices"] == answers[1]["choices"] == answers[2]["choices"]
    assert answers[0]["usage"]["completion_tokens"] == answers[2]["usage"]["completion_tokens"]
    for choice in answers[0]["choices"]:
        deltas = [piece["delta"] for piece in streamed if piece["index"] == choice["index"]]
        assert "".join(delta.get("content", "") for delta in deltas) == (choice["message"]["content"] or "")
        pieces = [call for delta in deltas for call in delta.get("tool_calls", [])]
        for index, call in enumerate(choice["message"].get("tool_calls", [])):
            arguments = "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == index)
            assert arguments == call["function"]["arguments"]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("fields", [{}, {"response_format": ENTRY_FORMAT}], ids=["free", "schema"])
def test_log_probabilities_agree_with_speculation_and_without(
    server: Running, fields: dict[str, Any], temperature: float
) -> None:
    common = {**fields, "temperature": temperature, "seed": 2, "max_tokens": 60, "logprobs": True, "top_logprobs": 3}
    tree, plain = (
        ask(server, **common, speculation={"mode": mode})["choices"][0]["logprobs"]["content"]
        for mode in ("tree", "off")
    )

    assert [entry["token"] for entry in tree] == [entry["token"] for entry in plain]
    for drafted, alone in zip(tree, plain, strict=True):
        assert drafted["logprob"] == pytest.approx(alone["logprob"], abs=1e-4)
        values = [[other["logprob"] for other in entry["top_logprobs"]] for entry in (drafted, alone)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_the_sdk_parses_what_it_asked_for(client: OpenAI) -> None:
    found = client.chat.completions.parse(model="demo", messages=QUESTION, response_format=Entry, max_tokens=200)

    assert isinstance(found.choices[0].message.parsed, Entry)
    assert found.choices[0].finish_reason == "stop"
    assert found.model_extra is not None
    assert found.model_extra["speculation"]["by_source"]["grammar"]["accepted"] > 0


def test_a_form_that_the_limit_cuts_is_a_valid_beginning(server: Running, client: OpenAI) -> None:
    cut = ask(server, response_format=ENTRY_FORMAT, max_tokens=9)["choices"][0]

    assert cut["finish_reason"] == "length"
    assert cut["message"]["content"].startswith('{"name": "')
    with pytest.raises(LengthFinishReasonError):
        client.chat.completions.parse(model="demo", messages=QUESTION, response_format=Entry, max_tokens=9)


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_every_expression_is_matched_whole(server: Running, temperature: float) -> None:
    found = ask(server, temperature=temperature, seed=1, **FORMS["regex"])["choices"][0]["message"]["content"]

    assert re.fullmatch(FORMS["regex"]["guided_regex"], found)


def test_a_choice_is_one_of_its_options_on_both_endpoints(server: Running) -> None:
    options = FORMS["choice"]["guided_choice"]
    body = {
        "model": "demo",
        "prompt": "textwrap.dedent:",
        "max_tokens": 30,
        "guided_choice": options,
        "n": 3,
        "seed": 1,
    }
    completed = server.post("/v1/completions", {**body, "temperature": 2}).json()

    assert ask(server, **FORMS["choice"])["choices"][0]["message"]["content"] in options
    texts = [choice["text"] for choice in completed["choices"]]
    assert set(texts) <= set(options) and len(texts) == 3


def test_any_json_object_begins_as_one(server: Running) -> None:
    found = ask(server, response_format={"type": "json_object"}, max_tokens=30)["choices"][0]["message"]["content"]

    assert found.startswith("{")


@pytest.mark.parametrize("seed", range(4))
def test_forced_arguments_always_parse(server: Running, seed: int) -> None:
    choice = ask(server, **FORMS["call"], temperature=2, seed=seed, max_tokens=400)["choices"][0]

    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    for call in choice["message"]["tool_calls"]:
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "search":
            assert set(arguments) == {"query", "limit"} and arguments["limit"] in (5, 10)
        else:
            assert (call["function"]["name"], arguments) == ("open_file", {})


def test_one_call_is_made_where_calls_are_not_parallel_or_named(server: Running) -> None:
    single = ask(server, **FORMS["call"], parallel_tool_calls=False, temperature=2, seed=1, max_tokens=400)
    named = ask(server, **FORMS["named call"], temperature=2, seed=1)

    assert len(single["choices"][0]["message"]["tool_calls"]) == 1
    (call,) = named["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "search"
    # as OpenAI says of a function that was asked for by name
    assert named["choices"][0]["finish_reason"] == "stop"


def test_the_arguments_of_a_forced_call_arrive_as_they_are_written(client: OpenAI) -> None:
    fields: Any = FORMS["named call"]
    stream = client.chat.completions.create(model="demo", messages=QUESTION, stream=True, max_tokens=150, **fields)
    pieces = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]

    assert [piece.function.name for piece in pieces if piece.function and piece.function.name] == ["search"]
    arguments = [piece.function.arguments for piece in pieces if piece.function and piece.function.arguments]
    assert len(arguments) > 2
    assert set(json.loads("".join(arguments))) == {"query", "limit"}


def test_usage_tells_what_became_of_a_prediction(server: Running) -> None:
    plain = ask(server, temperature=0, max_tokens=40)
    text = plain["choices"][0]["message"]["content"]
    right = ask(server, temperature=0, max_tokens=40, prediction={"type": "content", "content": text})
    wrong = ask(
        server,
        temperature=0,
        max_tokens=40,
        prediction={"type": "content", "content": [{"type": "text", "text": "zzz"}]},
    )

    assert "completion_tokens_details" not in plain["usage"]
    assert right["choices"] == wrong["choices"] == plain["choices"]
    details = right["usage"]["completion_tokens_details"]
    assert details["rejected_prediction_tokens"] <= 1 < details["accepted_prediction_tokens"]
    assert wrong["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] == 0
    assert right["speculation"]["by_source"]["prediction"]["accepted"] > 0
    assert right["speculation"]["steps"] < plain["speculation"]["steps"]


def test_a_hostile_schema_is_refused_and_the_server_goes_on(server: Running) -> None:
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string", "pattern": "(.*a){20}"} for n in range(4000)}}
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(80):
        deep = {"type": "array", "items": deep}
    huge = {"enum": [f"name number {n}" for n in range(60_000)]}
    circular = {"$ref": "#"}
    for schema in (wide, deep, huge, circular):
        body = {"model": "demo", "messages": QUESTION, "max_tokens": 5}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
        answer = server.post(CHAT, {**body, "response_format": form})
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert answer.json()["error"]["param"] == "response_format"
            assert len(answer.json()["error"]["message"]) < 2000
    assert ask(server, max_tokens=3)["usage"]["completion_tokens"] == 3


SPELT = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"v": {"const": "<|im_end|>"}}}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": {"const": {"k": "a<|im_end|>b"}}},
        {"guided_choice": ["<|im_end|>"]},
        {"guided_regex": r"x<\|im_start\|> y"},
        {"tools": [SPELT], "tool_choice": "required"},
    ],
    ids=["json", "choice", "regex", "call"],
)  # fmt: skip
def test_a_form_that_spells_a_token_of_its_own_is_refused_by_name(server: Running, fields: dict[str, Any]) -> None:
    """The tokenizer reads the text as that token, and an end would end the answer in the middle of its form."""
    refused = server.post(CHAT, {"model": "demo", "messages": QUESTION, **fields})

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == next(iter(fields))
    assert "a token of its own" in refused.json()["error"]["message"]


def test_a_stop_string_cuts_no_forced_call(server: Running) -> None:
    (call,) = ask(server, **FORMS["named call"], stop=["e", "{"])["choices"][0]["message"]["tool_calls"]

    assert set(json.loads(call["function"]["arguments"])) == {"query", "limit"}


def test_a_schema_that_would_overflow_the_stack_is_refused_and_the_server_lives(server: Running) -> None:
    defs: dict[str, Any] = {f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(1500)}
    schema = {"$defs": {**defs, "d1500": {"type": "string"}}, "$ref": "#/$defs/d0"}
    refused = server.post(CHAT, {"model": "demo", "messages": QUESTION, "guided_json": schema})

    assert refused.status_code == 400
    assert ask(server, max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_plain_question_is_answered_whole_and_streamed_and_its_steps_are_shown(client: OpenAI) -> None:
    # a size of its own: which one pays is measured, on a machine that others may keep busy
    watched = {"speculation": {"mode": "tree", "max_nodes": 8, "detail": True}}
    whole = client.chat.completions.create(model="demo", messages=QUESTION, extra_body=watched)
    chunks = list(client.chat.completions.create(model="demo", messages=QUESTION, stream=True))

    text = whole.choices[0].message.content
    assert text is not None
    assert "whitespace" in text
    assert whole.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert whole.model_extra is not None
    stats = whole.model_extra["speculation"]
    assert stats["tokens_per_step"] > 1.5
    assert {"id", "text", "parent", "depth", "source", "rank", "probability"} == set(stats["detail"][1]["tree"][0])
    assert all(token["source"] == "heads" for token in stats["detail"][1]["tokens"][:-1])
    told = [token["text"] for record in stats["detail"] for token in record["tokens"][: record["delivered"]]]
    assert "".join(told) == text
