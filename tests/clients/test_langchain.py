"""langchain-openai, against the demo model: ChatOpenAI and the older text-in, text-out OpenAI."""

import asyncio
import functools
import operator
from typing import Any

import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

from tests.clients.conftest import Server

QUESTION = "What does textwrap.dedent do?"


def chat(server: Server, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=server.base_url, api_key=server.key, model=server.model, max_retries=0, **options)


def completion(server: Server, **options: Any) -> OpenAI:
    return OpenAI(base_url=server.base_url, api_key=server.key, model=server.model, max_retries=0, **options)


def gathered(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    return functools.reduce(operator.add, chunks)


def test_an_invocation_answers_with_usage_and_reason(demo: Server) -> None:
    answer = chat(demo).invoke(QUESTION)

    assert "whitespace" in answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == "demo"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == (
        answer.usage_metadata["input_tokens"] + answer.usage_metadata["output_tokens"]
    )


def test_a_stream_adds_up_to_the_answer_and_its_usage(demo: Server) -> None:
    model = chat(demo, stream_usage=True)
    whole = model.invoke(QUESTION)
    chunks = list(model.stream(QUESTION))
    sum_of_chunks = gathered(chunks)

    assert len(chunks) > 10
    assert sum_of_chunks.content == whole.content
    assert sum_of_chunks.response_metadata["finish_reason"] == "stop"
    assert sum_of_chunks.response_metadata["model_name"] == "demo"
    assert sum_of_chunks.usage_metadata is not None and whole.usage_metadata is not None
    assert sum_of_chunks.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_a_stream_whose_usage_nobody_asked_for_has_none(demo: Server) -> None:
    assert gathered(list(chat(demo, stream_usage=False).stream(QUESTION))).usage_metadata is None


def test_an_asynchronous_stream_adds_up_to_the_answer(demo: Server) -> None:
    async def text() -> str:
        return "".join([chunk.content async for chunk in chat(demo).astream(QUESTION)])

    assert asyncio.run(text()) == chat(demo).invoke(QUESTION).content


def test_a_batch_is_answered_in_its_order(demo: Server) -> None:
    questions = [f"What does {name} do?" for name in ("json.dumps", "textwrap.dedent", "os.getcwd")]
    model = chat(demo, max_tokens=30)
    answers = [answer.content for answer in model.batch(questions)]

    assert answers == [model.invoke(question).content for question in questions]
    assert len(set(answers)) == 3


def test_a_conversation_is_continued(fake: Server) -> None:
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("Grüße!", name="ann"),
        AIMessage("Hello."),
        HumanMessage([{"type": "text", "text": "And "}, {"type": "text", "text": "now 🙂?"}]),
    ]
    # the fake engine repeats the prompt
    content = chat(fake).invoke(messages).content

    assert content == "system\nBe brief.user\nGrüße!assistant\nHello.user\nAnd now 🙂?assistant\n"


def test_log_probabilities_come_with_the_message(demo: Server) -> None:
    answer = chat(demo, logprobs=True, top_logprobs=2, max_tokens=8, temperature=0).invoke(QUESTION)
    entries = answer.response_metadata["logprobs"]["content"]

    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == answer.content
    assert all(entry["top_logprobs"][0]["token"] == entry["token"] for entry in entries)


def test_several_answers_are_several_generations(demo: Server) -> None:
    result = chat(demo, n=3, temperature=1.5, seed=5, max_tokens=16).generate([[HumanMessage(QUESTION)]])

    assert len({generation.text for generation in result.generations[0]}) == 3


def test_options_beyond_openais_go_through_extra_body(demo: Server) -> None:
    plain = chat(demo, extra_body={"speculation": {"mode": "off"}}, max_tokens=20)

    assert plain.invoke(QUESTION).content == chat(demo, max_tokens=20).invoke(QUESTION).content


def test_a_stop_string_is_honoured(demo: Server) -> None:
    text = chat(demo).invoke(QUESTION).content

    assert chat(demo).invoke(QUESTION, stop=["leading"]).content == text[: text.index("leading")]


def test_a_conversation_that_is_too_long_is_an_overflow_to_langchain(demo: Server) -> None:
    with pytest.raises(ContextOverflowError, match="maximum context length is 2048 tokens") as caught:
        chat(demo).invoke("word " * 9000)

    assert isinstance(caught.value, openai.BadRequestError)
    assert caught.value.code == "context_length_exceeded"


def test_a_wrong_value_is_the_clients_own_error(demo: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(demo, temperature=9).invoke(QUESTION)

    assert caught.value.param == "temperature"


def test_the_older_class_completes_a_list_of_prompts(demo: Server) -> None:
    prompts = ["import os\n", "def read(", "class A"]
    model = completion(demo, max_tokens=6, temperature=0)
    result = model.generate(prompts)

    # one request for all of them, and each as if it stood alone
    assert [one[0].text for one in result.generations] == [
        demo.complete(prompt=prompt, max_tokens=6, temperature=0)["choices"][0]["text"] for prompt in prompts
    ]
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["completion_tokens"] == 18
    assert [one[0].generation_info for one in result.generations] == [{"finish_reason": "length", "logprobs": None}] * 3


def test_more_prompts_than_one_request_holds_are_sent_in_parts(fake: Server) -> None:
    prompts = [f"Hello {number}" for number in range(25)]

    assert completion(fake, batch_size=20).batch(prompts) == prompts


def test_the_older_class_takes_null_for_what_it_leaves_open(demo: Server) -> None:
    nothing: dict[str, Any] = {"logit_bias": None, "seed": None, "logprobs": None}

    assert completion(demo, max_tokens=4, temperature=0, **nothing).invoke("import") == (
        completion(demo, max_tokens=4, temperature=0).invoke("import")
    )


def test_the_older_class_streams(demo: Server) -> None:
    model = completion(demo, max_tokens=20, temperature=0)
    pieces = list(model.stream("def read("))

    assert len(pieces) > 3
    assert "".join(pieces) == model.invoke("def read(")


def test_the_older_class_chooses_the_best_of_several(demo: Server) -> None:
    result = completion(demo, n=2, best_of=4, max_tokens=8, temperature=1.0, seed=3).generate(["def read("])

    assert len(result.generations[0]) == 2
