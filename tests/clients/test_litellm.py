"""LiteLLM, which recognises errors by their status and text."""

import asyncio
from typing import Any

import httpx
import litellm
import pytest

from tests.clients.conftest import ENDLESS_SEED, Server

QUESTION = [{"role": "user", "content": "What does textwrap.dedent do?"}]


def chat(server: Server, **fields: Any) -> Any:
    return litellm.completion(**{**arguments(server), "messages": QUESTION, **fields})


def arguments(server: Server, provider: str = "openai") -> dict[str, Any]:
    return {
        "model": f"{provider}/{server.model}",
        "api_base": server.base_url,
        "api_key": server.key,
        "max_retries": 0,
        "timeout": 60,
    }


def test_a_chat_is_answered(demo: Server) -> None:
    answer = chat(demo)

    assert "whitespace" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "litellm_proxy"])
def test_every_name_for_a_compatible_server_gives_the_same_answer(demo: Server, provider: str) -> None:
    answer = litellm.completion(**arguments(demo, provider), messages=QUESTION, max_tokens=20)

    assert answer.choices[0].message.content == chat(demo, max_tokens=20).choices[0].message.content
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_can_be_rebuilt_into_the_answer(demo: Server) -> None:
    whole = chat(demo)
    chunks = list(chat(demo, stream=True, stream_options={"include_usage": True}))
    rebuilt = litellm.stream_chunk_builder(chunks, messages=QUESTION)

    assert len(chunks) > 10
    assert rebuilt.choices[0].message.content == whole.choices[0].message.content
    assert rebuilt.choices[0].finish_reason == "stop"
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens
    assert rebuilt.usage.prompt_tokens == whole.usage.prompt_tokens


def test_an_asynchronous_stream_spells_the_answer(demo: Server) -> None:
    async def text() -> str:
        stream = await litellm.acompletion(**arguments(demo), messages=QUESTION, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(text()) == chat(demo).choices[0].message.content


def test_a_list_of_prompts_is_completed(demo: Server) -> None:
    prompts = ["import os\n", "def read("]
    model = arguments(demo, "text-completion-openai")
    answer = litellm.text_completion(**model, prompt=prompts, max_tokens=6, temperature=0)

    assert [choice["text"] for choice in answer.choices] == [
        demo.complete(prompt=prompt, max_tokens=6, temperature=0)["choices"][0]["text"] for prompt in prompts
    ]


def test_log_probabilities_arrive(demo: Server) -> None:
    answer = chat(demo, logprobs=True, top_logprobs=2, max_tokens=6, temperature=0)
    entries = answer.choices[0].logprobs.content

    assert "".join(entry.token for entry in entries) == answer.choices[0].message.content
    assert [len(entry.top_logprobs) for entry in entries] == [2] * 6


def test_several_answers_arrive(demo: Server) -> None:
    answer = chat(demo, n=3, temperature=1.5, seed=5, max_tokens=16)

    assert len({choice.message.content for choice in answer.choices}) == 3


def test_options_beyond_openais_are_passed_on(demo: Server) -> None:
    answer = chat(demo, extra_body={"speculation": {"mode": "off"}, "top_k": 1}, temperature=1.0, max_tokens=20)

    assert answer.speculation["tokens_per_step"] == 1
    assert answer.choices[0].message.content == chat(demo, max_tokens=20, temperature=0).choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_that_is_too_long_is_litellms_overflow(demo: Server, stream: bool) -> None:
    with pytest.raises(litellm.ContextWindowExceededError, match="maximum context length is 2048 tokens"):
        chat(demo, messages=[{"role": "user", "content": "word " * 9000}], stream=stream)


def test_a_prompt_that_is_too_long_is_litellms_overflow(demo: Server) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.text_completion(**arguments(demo, "text-completion-openai"), prompt="word " * 9000)


def test_a_wrong_value_is_a_bad_request(demo: Server) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature") as caught:
        chat(demo, temperature=9)

    assert not isinstance(caught.value, litellm.ContextWindowExceededError)


def test_an_unknown_model_is_not_found(demo: Server) -> None:
    with pytest.raises(litellm.NotFoundError):
        chat(demo, model="openai/gpt-5")


def test_a_wrong_key_is_an_authentication_error(strict: Server) -> None:
    with pytest.raises(litellm.AuthenticationError):
        chat(strict, api_key="wrong")


def test_a_full_queue_is_a_rate_limit(strict: Server) -> None:
    strict.wait_until_idle()
    body = {"model": strict.model, "prompt": "Hello", "max_tokens": 390, "seed": ENDLESS_SEED, "stream": True}
    headers = {"authorization": f"Bearer {strict.key}"}
    with httpx.stream("POST", f"{strict.base_url}/completions", json=body, headers=headers, timeout=20) as response:
        next(response.iter_lines())
        with pytest.raises(litellm.RateLimitError):
            chat(strict)


def test_a_key_opens_a_server_that_wants_one(strict: Server) -> None:
    # the one that left the full queue may not be out of it yet
    strict.wait_until_idle()

    assert "textwrap.dedent" in chat(strict).choices[0].message.content
