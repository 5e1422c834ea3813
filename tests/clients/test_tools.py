"""Calls of functions, through every client that offers them; Node's stand in node/structured.test.js."""

import functools
import json
import operator
from typing import Any, Literal

import litellm
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict

from tests.clients.conftest import Server
from tests.clients.node_runs import claims, run

NODE_FILE = "structured.test.js"
QUESTION: list[Any] = [{"role": "user", "content": "What does textwrap.dedent do?"}]


class Classify(BaseModel):
    """Tells what a name is."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["module", "class", "function"]
    certain: bool


class Remember(BaseModel):
    """Keeps a mood for later."""

    model_config = ConfigDict(extra="forbid")

    mood: Literal["🙂", "Grüße"]


FUNCTIONS: dict[str, type[BaseModel]] = {"Classify": Classify, "Remember": Remember}
TOOLS: list[Any] = [openai.pydantic_function_tool(function) for function in FUNCTIONS.values()]
ASKED_TO_CALL: list[Any] = [
    {"role": "user", "content": '<tool_call>\n{"name": "Remember", "arguments": {"mood": "🙂"}}\n</tool_call>'}
]
NAMED: Any = {"type": "function", "function": {"name": "Remember"}}


@pytest.fixture
def client(demo: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=demo.base_url, api_key=demo.key, max_retries=0, timeout=60)


def langchain(server: Server) -> ChatOpenAI:
    return ChatOpenAI(base_url=server.base_url, api_key=server.key, model="demo", max_retries=0)


def gathered(chunks: list[Any]) -> Any:
    return functools.reduce(operator.add, chunks)


def litellm_chat(server: Server, **fields: Any) -> Any:
    common = {"api_base": server.base_url, "api_key": server.key, "max_retries": 0, "messages": QUESTION}
    return litellm.completion(model=f"openai/{server.model}", **{**common, **fields})


@pytest.fixture(scope="module")
def node_results(node_environment: dict[str, str]) -> dict[str, str | None]:
    return run(NODE_FILE, node_environment)


@pytest.mark.parametrize("claim", claims(NODE_FILE))
def test_node_claims(node_results: dict[str, str | None], claim: str) -> None:
    assert node_results[claim] is None, node_results[claim]


def test_openai_gets_a_call_that_was_required(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(
        model="demo", messages=QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False
    ).choices
    (call,) = choice.message.tool_calls or []

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert call.id and call.type == "function"
    FUNCTIONS[call.function.name].model_validate_json(call.function.arguments)


def test_openai_gets_the_function_that_was_named(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.parse(model="demo", messages=QUESTION, tools=TOOLS, tool_choice=NAMED).choices
    (call,) = choice.message.tool_calls or []

    assert choice.finish_reason in ("stop", "tool_calls")
    assert isinstance(call.function.parsed_arguments, Remember)


def test_openai_puts_a_streamed_call_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=QUESTION, tools=TOOLS, tool_choice="required") as stream:
        (choice,) = stream.get_final_completion().choices
    (call,) = choice.message.tool_calls or []

    assert isinstance(call.function.parsed_arguments, FUNCTIONS[call.function.name])
    assert choice.finish_reason == "tool_calls"


def test_openai_leaves_the_choice_to_a_model_that_was_taught_calls(calling: Server) -> None:
    client = openai.OpenAI(base_url=calling.base_url, api_key=calling.key, max_retries=0, timeout=60)
    with client.chat.completions.stream(model="fake", messages=ASKED_TO_CALL, tools=TOOLS) as stream:
        streamed = stream.get_final_completion().choices[0]
    whole = client.chat.completions.parse(model="fake", messages=ASKED_TO_CALL, tools=TOOLS).choices[0]
    without = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}], tools=TOOLS)

    for choice in (streamed, whole):
        (call,) = choice.message.tool_calls or []
        assert call.function.parsed_arguments == Remember(mood="🙂")
        assert choice.finish_reason == "tool_calls"
    assert streamed.message.content == whole.message.content
    assert without.choices[0].message.tool_calls is None
    assert without.choices[0].finish_reason == "stop"


def test_openai_hears_of_a_model_that_was_not(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tool_choice") as caught:
        client.chat.completions.create(model="demo", messages=QUESTION, tools=TOOLS)

    assert caught.value.param == "tools"
    assert caught.value.code == "unsupported_parameter"


def test_a_function_that_is_not_there_is_a_bad_request(client: openai.OpenAI) -> None:
    missing: Any = {"type": "function", "function": {"name": "forget"}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=QUESTION, tools=TOOLS, tool_choice=missing)

    assert caught.value.param is not None and caught.value.param.startswith("tool_choice")


def test_langchain_reads_a_call_and_goes_on_after_it(demo: Server) -> None:
    question = HumanMessage("What does textwrap.dedent do?")
    called = langchain(demo).bind_tools([Classify, Remember], tool_choice="any").invoke([question])
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    result = ToolMessage("It is a function.", tool_call_id=call["id"])
    answer = langchain(demo).bind_tools([Classify, Remember], tool_choice="none").invoke([question, called, result])

    FUNCTIONS[call["name"]].model_validate(call["args"])
    assert called.invalid_tool_calls == []
    assert answer.content and not answer.tool_calls


def test_langchain_leaves_the_choice_to_the_model(calling: Server) -> None:
    model = ChatOpenAI(base_url=calling.base_url, api_key=calling.key, model="fake", max_retries=0)
    bound = model.bind_tools([Classify, Remember])
    chunks = list(bound.stream(ASKED_TO_CALL))

    for answer in (bound.invoke(ASKED_TO_CALL), gathered(chunks)):
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("Remember", {"mood": "🙂"})]
        assert answer.response_metadata["finish_reason"] == "tool_calls"
    assert bound.invoke("hi").tool_calls == []


def test_langchain_puts_a_streamed_call_together(demo: Server) -> None:
    chunks = list(langchain(demo).bind_tools([Classify], tool_choice="Classify").stream("What does os.getcwd do?"))
    (call,) = gathered(chunks).tool_calls

    assert call["name"] == "Classify"
    Classify.model_validate(call["args"])


def test_langchain_returns_a_model_through_a_function(demo: Server) -> None:
    structured = langchain(demo).with_structured_output(Classify, method="function_calling")

    assert isinstance(structured.invoke("What does textwrap.dedent do?"), Classify)


def test_litellm_reads_a_call(demo: Server) -> None:
    (choice,) = litellm_chat(demo, tools=TOOLS, tool_choice="required").choices
    (call,) = choice.message.tool_calls

    assert choice.finish_reason == "tool_calls"
    FUNCTIONS[call.function.name].model_validate(json.loads(call.function.arguments))


def test_litellm_puts_a_streamed_call_together(demo: Server) -> None:
    chunks = list(litellm_chat(demo, tools=TOOLS, tool_choice=NAMED, stream=True))
    (call,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls

    assert call.function.name == "Remember"
    Remember.model_validate_json(call.function.arguments)


def test_litellm_leaves_the_choice_to_the_model(calling: Server) -> None:
    (choice,) = litellm_chat(calling, messages=ASKED_TO_CALL, tools=TOOLS).choices

    assert [call.function.name for call in choice.message.tool_calls] == ["Remember"]
    assert choice.finish_reason == "tool_calls"
