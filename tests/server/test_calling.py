import json
from collections.abc import Iterator
from typing import Any

import pytest

from medusa_core.errors import UnsupportedParameter
from medusa_core.text import TextCodec
from server.call_events import Content
from server.calling import PlainStream, plan_calls
from server.schemas.tools import ToolRequest
from tests.server.running import MODEL, Running, running
from tests.tiny_tokenizers import CHAT_TEMPLATE, save_byte_level

# As Qwen's and Hermes' templates teach it, in short.
TEACH_HERMES = (
    "{% if tools %}{{ '<tools>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '</tools>' }}"
    '{{ \'Answer with <tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>\' }}{% endif %}'
)
HERMES_TEMPLATE = TEACH_HERMES + CHAT_TEMPLATE
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln 🙂"}}\n</tool_call>'


def request(choice: Any = "auto", function: str | None = None) -> ToolRequest:
    return ToolRequest((WEATHER,), choice, function, True, frozenset())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(str(save_byte_level(tmp_path_factory.mktemp("plain"))))


@pytest.fixture(scope="module")
def teaching(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(str(save_byte_level(tmp_path_factory.mktemp("teaching"), HERMES_TEMPLATE)))


def test_where_nothing_can_be_called_all_is_content(teaching: TextCodec) -> None:
    assert plan_calls(None, teaching) is None
    assert plan_calls(request("none"), teaching) is None
    assert PlainStream().feed("<tool_call>") == [Content("<tool_call>")]
    assert PlainStream().feed("") == PlainStream().finish() == []


def test_a_forced_call_needs_no_template_that_teaches_it(plain: TextCodec) -> None:
    calling = plan_calls(request("required", "weather"), plain)

    assert calling is not None and calling.grammar is not None
    assert calling.is_named
    assert "weather" in calling.grammar.text


def test_calls_of_the_models_own_accord_need_one(plain: TextCodec, teaching: TextCodec) -> None:
    with pytest.raises(UnsupportedParameter, match="teaches no known way to call them; force a call"):
        plan_calls(request(), plain)

    calling = plan_calls(request(), teaching)
    assert calling is not None and calling.grammar is None


def test_only_a_strict_function_holds_the_models_own_calls_to_its_schema(teaching: TextCodec) -> None:
    asked = ToolRequest((WEATHER,), "auto", None, True, frozenset({"weather"}))
    strict, loose = plan_calls(asked, teaching), plan_calls(request(), teaching)

    assert strict is not None and strict.grammar is not None
    assert loose is not None and loose.grammar is None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The engine of this server repeats the conversation, so a call that the user writes comes back as the model's."""
    folder = save_byte_level(tmp_path_factory.mktemp("hermes"), HERMES_TEMPLATE)
    with running(folder, max_context=4000) as server:
        yield server


def ask(server: Running, text: str, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def test_what_the_model_calls_comes_back_as_a_call(server: Running) -> None:
    choice = ask(server, f"hm {CALL}", tools=[WEATHER])

    # the prompt itself shows how a call is written, and what is no call stays text
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["type"] == "function" and call["id"].startswith("call_")
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln 🙂"}
    assert "hm" in choice["message"]["content"]


def test_without_tools_or_with_the_choice_of_none_it_is_text(server: Running) -> None:
    for fields in ({}, {"tools": [WEATHER], "tool_choice": "none"}, {"tools": []}):
        choice = ask(server, CALL, **fields)

        assert CALL in choice["message"]["content"]
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"


def test_a_malformed_call_is_content(server: Running) -> None:
    choice = ask(server, '<tool_call>\n{"name": "weather", "arg\n</tool_call>', tools=[WEATHER])

    assert '{"name": "weather", "arg' in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"


def test_a_stream_of_calls_adds_up_to_the_whole_answer(server: Running) -> None:
    question: list[Any] = [{"role": "user", "content": f"first {CALL} and {CALL}"}]
    tools: list[Any] = [WEATHER]
    with server.openai() as client:
        whole = client.chat.completions.create(model=MODEL, messages=question, tools=tools)
        chunks = list(client.chat.completions.create(model=MODEL, messages=question, tools=tools, stream=True))

    deltas = [chunk.choices[0].delta for chunk in chunks]
    pieces = [call for delta in deltas for call in delta.tool_calls or []]
    message = whole.choices[0].message
    assert message.tool_calls is not None
    assert [piece.index for piece in pieces if piece.id is not None] == [0, 1]
    for index, call in enumerate(message.tool_calls):
        mine = [piece.function for piece in pieces if piece.index == index and piece.function is not None]
        assert "".join(function.name or "" for function in mine) == call.function.name  # type: ignore[union-attr]
        assert "".join(function.arguments or "" for function in mine) == call.function.arguments  # type: ignore[union-attr]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"
    assert server.metrics()["medusa_requests_total endpoint=chat finish_reason=tool_calls"] >= 2


def test_log_probabilities_of_a_call_are_all_delivered(server: Running) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "logprobs": True}
    whole = ask(server, CALL, **fields)
    body = {"model": MODEL, "messages": [{"role": "user", "content": CALL}], **fields, "stream": True}
    lines = server.post("/v1/chat/completions", body).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    streamed = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == whole["logprobs"]["content"] != []


def test_an_answer_that_may_call_has_no_other_form(server: Running) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [WEATHER],
        "response_format": {"type": "json_object"},
    }
    refused = server.post("/v1/chat/completions", body)

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format"
    assert server.post("/v1/chat/completions", {**body, "tool_choice": "none"}).status_code == 200


def test_parameters_that_cannot_be_followed_are_refused_before_anything_is_queued(server: Running) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "tools": [bad], "tool_choice": "required"}
    refused = server.post("/v1/chat/completions", body)

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools"
    assert "not" in refused.json()["error"]["message"]


def test_a_history_with_calls_is_rendered(server: Running) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rom"}'}}
    history = [
        {"role": "user", "content": "Wetter?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = server.post("/v1/chat/completions", {"model": MODEL, "messages": history, "tools": [WEATHER]})

    assert answer.status_code == 200
    assert "sunny" in answer.json()["choices"][0]["message"]["content"]


def test_the_tokens_of_a_conversation_hold_the_tools_it_offers(server: Running) -> None:
    conversation = {"messages": [{"role": "user", "content": "hi"}]}

    def spelt(**fields: Any) -> str:
        tokens = server.post("/tokenize", {**conversation, **fields}).json()["tokens"]
        text: str = server.post("/detokenize", {"tokens": tokens}).json()["prompt"]
        return text

    assert "weather" in spelt(tools=[WEATHER])
    assert "weather" not in spelt(tools=[WEATHER], tool_choice="none")
    refused = server.post("/tokenize", {"prompt": "hi", "tools": [WEATHER]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
