"""Answers that must match a schema, through every client that offers it."""

import json
from typing import Any, Literal

import litellm
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.conftest import Server

QUESTION: list[Any] = [{"role": "user", "content": "What does textwrap.dedent do?"}]


class Origin(BaseModel):
    model_config = ConfigDict(extra="forbid")

    package: Literal["textwrap", "json", "os"]
    builtin: bool


class Verdict(BaseModel):
    """What a name is; nothing in it that a small model could go on with for ever."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["module", "class", "function"]
    mood: Literal["🙂", "Grüße"]
    origin: Origin
    letters: str = Field(max_length=6)


RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "verdict", "schema": Verdict.model_json_schema(), "strict": True},
}


@pytest.fixture
def client(demo: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=demo.base_url, api_key=demo.key, max_retries=0, timeout=60)


def test_openai_parses_a_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="demo", messages=QUESTION, response_format=Verdict)

    assert isinstance(answer.choices[0].message.parsed, Verdict)
    assert answer.choices[0].finish_reason == "stop"


def test_openai_parses_a_streamed_model(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=QUESTION, response_format=Verdict) as stream:
        streamed = stream.get_final_completion().choices[0].message
    whole = client.chat.completions.parse(model="demo", messages=QUESTION, response_format=Verdict).choices[0].message

    assert isinstance(streamed.parsed, Verdict)
    assert streamed.content == whole.content


def test_openai_says_when_the_answer_was_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="demo", messages=QUESTION, response_format=Verdict, max_tokens=3)


def test_a_schema_that_cannot_be_followed_is_a_bad_request(client: openai.OpenAI) -> None:
    broken: Any = {"type": "json_schema", "json_schema": {"name": "broken", "schema": {"type": "no such type"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=QUESTION, response_format=broken)

    assert caught.value.param is not None and caught.value.param.startswith("response_format")


@pytest.mark.parametrize("grammar", ["", 'word ::= "a"', "root ::= missing", 'root ::= "a"\nroot ::= "b"'])
def test_a_grammar_that_cannot_be_read_is_a_bad_request(client: openai.OpenAI, grammar: str) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="demo", messages=QUESTION, extra_body={"grammar": grammar})


def test_an_object_is_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, response_format={"type": "json_object"}, max_tokens=200
    )
    text = answer.choices[0].message.content or ""

    assert text.lstrip().startswith("{")
    assert answer.choices[0].finish_reason == "length" or isinstance(json.loads(text), dict)


@pytest.mark.parametrize("strict", [True, None])
def test_langchain_returns_the_model(demo: Server, strict: bool | None) -> None:
    model = ChatOpenAI(base_url=demo.base_url, api_key=demo.key, model="demo", max_retries=0)
    structured = model.with_structured_output(Verdict, method="json_schema", strict=strict)

    assert isinstance(structured.invoke("What does textwrap.dedent do?"), Verdict)


def test_langchain_streams_towards_the_model(demo: Server) -> None:
    model = ChatOpenAI(base_url=demo.base_url, api_key=demo.key, model="demo", max_retries=0)
    structured = model.with_structured_output(Verdict, method="json_schema")

    assert isinstance(list(structured.stream("What does textwrap.dedent do?"))[-1], Verdict)


@pytest.mark.parametrize("response_format", [Verdict, RESPONSE_FORMAT], ids=["model", "schema"])
def test_litellm_returns_what_matches(demo: Server, response_format: Any) -> None:
    answer = litellm.completion(
        model="openai/demo",
        api_base=demo.base_url,
        api_key=demo.key,
        messages=QUESTION,
        response_format=response_format,
        max_retries=0,
    )

    Verdict.model_validate_json(answer.choices[0].message.content)


def test_litellm_streams_what_matches(demo: Server) -> None:
    stream = litellm.completion(
        model="openai/demo",
        api_base=demo.base_url,
        api_key=demo.key,
        messages=QUESTION,
        response_format=RESPONSE_FORMAT,
        stream=True,
        max_retries=0,
    )

    Verdict.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in stream))
