from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.server import fake_engine
from tests.server.running import MODEL, Running, running
from tests.tiny_tokenizers import save_sentencepiece

QUESTION: list[Any] = [{"role": "user", "content": "Grüße 🙂 and more"}]
# the fake engine repeats the rendered prompt without its special tokens
ANSWER = "user\nGrüße 🙂 and moreassistant\n"


def test_an_answer_is_a_chat_completion(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION)

    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_answer_in_pieces(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    *pieces, finish, usage = chunks

    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content
    assert [chunk.choices[0].delta.role for chunk in pieces] == ["assistant"] + [None] * (len(pieces) - 1)
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * len(pieces)
    assert finish.choices[0].finish_reason == "stop"
    assert finish.choices[0].delta.model_dump(exclude_unset=True) == {}
    assert usage.choices == []
    assert usage.usage is not None and whole.usage is not None
    assert usage.usage.completion_tokens == whole.usage.completion_tokens
    assert len({(chunk.id, chunk.object, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(len(chunk.choices[0].delta.content or "") < len(ANSWER) for chunk in pieces)


def test_without_include_usage_no_chunk_is_empty(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True))

    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert all("usage" not in chunk.model_dump(exclude_unset=True) for chunk in chunks)


def test_the_statistics_stand_in_the_answer_and_in_the_finish_chunk(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION)
    *_, finish = client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)

    assert whole.model_extra is not None and finish.model_extra is not None
    stats = whole.model_extra["speculation"]
    assert stats == finish.model_extra["speculation"]
    assert whole.usage is not None
    # the first token comes from the prompt, every step emits at most three
    assert stats["steps"] == -(-(whole.usage.completion_tokens - 1) // 3)
    assert stats["tokens_per_step"] == round((whole.usage.completion_tokens - 1) / stats["steps"], 4)
    assert sum(stats["acceptance_lengths"]) == stats["steps"]
    assert stats["by_source"] == {"heads": {"drafted": stats["drafted"], "accepted": stats["accepted"]}}


def test_the_sdks_accumulator_takes_the_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION) as stream:
        completion = stream.get_final_completion()

    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].message.role == "assistant"


def test_a_wire_stream_ends_with_done_exactly_once(server: Running) -> None:
    body = {"model": MODEL, "messages": QUESTION, "stream": True}
    answer = server.post("/v1/chat/completions", body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\ndata: [DONE]\n\n")
    assert answer.text.count("[DONE]") == 1
    assert "\r" not in answer.text


def test_text_parts_are_joined_as_they_are(client: OpenAI) -> None:
    parts: list[Any] = [{"type": "text", "text": "Grüße 🙂"}, {"type": "text", "text": " and more"}]
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])

    assert answer.choices[0].message.content == ANSWER


def test_developer_is_another_word_for_system(client: OpenAI) -> None:
    def prompted(role: str) -> str | None:
        messages: list[Any] = [{"role": role, "content": "Be brief."}, *QUESTION]
        return client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content

    assert prompted("developer") == prompted("system")


def test_max_completion_tokens_goes_before_max_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_completion_tokens=5, max_tokens=9)

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("limit", [5000, 10**18])
def test_a_limit_beyond_the_context_is_the_room_left(client: OpenAI, limit: int) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=limit, extra_body={"ignore_eos": True}
    )

    assert answer.usage is not None
    assert answer.usage.total_tokens == 400
    assert answer.choices[0].finish_reason == "length"


def test_a_history_with_tool_calls_and_odd_keys_is_rendered(client: OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages: list[Any] = [
        {"role": "user", "content": "add", "type": "text"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages)

    assert answer.choices[0].message.content == "user\naddassistant\ntool\n2assistant\n"


OPEN_ENDED: list[Any] = [*QUESTION, {"role": "assistant", "content": "Well,"}]


@pytest.mark.parametrize("is_streaming", [False, True])
def test_an_answer_may_go_on_with_the_last_message(server: Running, is_streaming: bool) -> None:
    asked: Any = {"model": MODEL, "messages": OPEN_ENDED, "stream": is_streaming}
    with server.openai() as client:
        found = client.chat.completions.create(**asked, extra_body={"continue_final_message": True})
        text = (
            "".join(chunk.choices[0].delta.content or "" for chunk in found)
            if is_streaming
            else found.choices[0].message.content
        )

    # the fake engine repeats the prompt: no new turn was begun
    assert text == "user\nGrüße 🙂 and moreassistant\nWell,"


def test_an_answer_that_goes_on_keeps_the_space_before_its_first_word(tmp_path: Path) -> None:
    folder = save_sentencepiece(tmp_path / "vicuna-7b-v1.5")
    template = tmp_path / "plain.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    # a sentencepiece's first token is a word with its space
    messages = [{"role": "assistant", "content": "Hello world"}]
    with running(folder, chat_template=template, heads=fake_engine.LARGE) as server:
        asked = {"model": MODEL, "messages": messages, "add_generation_prompt": False}
        answers = [
            server.post("/v1/chat/completions", {**asked, "continue_final_message": is_continued}).json()
            for is_continued in (False, True)
        ]

    assert [answer["choices"][0]["message"]["content"] for answer in answers] == ["Hello world", " Hello world"]


def test_no_new_turn_begins_when_none_is_wanted(server: Running) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "add_generation_prompt": False}
    answer = server.post("/v1/chat/completions", asked).json()

    assert answer["choices"][0]["message"]["content"] == "user\nGrüße 🙂 and more"


def test_a_template_reads_the_arguments_of_the_request(tmp_path: Path) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text("{{ messages[0].content }} {{ enable_thinking is defined and enable_thinking }}")
    with running(tmp_path, chat_template=template) as server:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        texts = [
            server.post("/v1/chat/completions", {**asked, "chat_template_kwargs": arguments}).json()["choices"][0]
            for arguments in (None, {}, {"enable_thinking": True})
        ]

    assert [choice["message"]["content"] for choice in texts] == ["hi False", "hi False", "hi True"]


def test_streamed_logprobs_are_those_of_the_whole_answer(server: Running) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Gr\u00f8n"}],
        "logprobs": True,
        "top_logprobs": 2,
    }
    with server.openai() as client:
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))

    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    streamed = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert content is not None
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in content]
    assert [len(entry.top_logprobs) for entry in content] == [2] * len(content)
    # the fake engine repeats the prompt, whose special tokens the text leaves out and the tokens' bytes do not
    spelt = bytes(byte for entry in content for byte in entry.bytes or ()).decode()
    assert spelt == whole.choices[0].message.content


def test_no_logprobs_are_sent_unasked(server: Running) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "logprobs": False, "top_logprobs": 0}

    assert server.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"] is None


def test_several_answers_stream_in_the_order_of_their_index_with_a_role_each(server: Running) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "n": 3}
    with server.openai() as client:
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))

    choices = [chunk.choices[0] for chunk in chunks]
    assert [choice.index for choice in choices] == sorted(choice.index for choice in choices)
    assert [choice.index for choice in choices if choice.delta.role] == [0, 1, 2]
    texts = ["".join(c.delta.content or "" for c in choices if c.index == index) for index in range(3)]
    assert texts == [choice.message.content for choice in whole.choices]
    with_statistics = [bool((chunk.model_extra or {}).get("speculation")) for chunk in chunks]
    assert with_statistics == [False] * (len(chunks) - 1) + [True]


def test_all_chunks_and_all_answers_carry_one_fingerprint(server: Running) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    with server.openai() as client:
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))

    assert whole.system_fingerprint is not None
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
