import threading
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from transformers import PreTrainedTokenizerFast

from tests.server import fake_engine
from tests.server.running import MODEL, Running, running
from tests.tiny_tokenizers import save_byte_level

TEXT = "Hello world, how are you today? 日本語"


def completed(client: OpenAI, **arguments: Any) -> tuple[str, str, int]:
    """Text, finish reason and tokens, the same streamed as whole."""
    arguments = {"model": MODEL, "prompt": TEXT, "max_tokens": 200, **arguments}
    whole = client.completions.create(**arguments)
    assert whole.usage is not None
    chunks = list(client.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    return whole.choices[0].text, whole.choices[0].finish_reason, whole.usage.completion_tokens


def test_an_answer_streams_as_it_is(client: OpenAI) -> None:
    text, reason, _ = completed(client)

    assert text == TEXT
    assert reason == "stop"


def test_sixteen_tokens_are_the_default(client: OpenAI) -> None:
    _, reason, tokens = completed(client, max_tokens=None)

    assert (reason, tokens) == ("length", 16)


@pytest.mark.parametrize("limit", range(1, 9))
def test_a_limit_inside_a_step_is_exact(client: OpenAI, limit: int) -> None:
    _, reason, tokens = completed(client, max_tokens=limit)

    assert (reason, tokens) == ("length", limit)


@pytest.mark.parametrize("length", range(1, 12))
def test_a_stop_string_never_leaks_wherever_the_steps_cut_it(client: OpenAI, length: int) -> None:
    stop = TEXT[6 : 6 + length]
    text, reason, _ = completed(client, stop=stop)

    assert text == TEXT[: TEXT.index(stop)]
    assert reason == "stop"


def test_the_earliest_of_many_stop_strings_wins(client: OpenAI) -> None:
    text, reason, _ = completed(client, stop=["today", "", "how are", "nowhere"])

    assert (text, reason) == ("Hello world, ", "stop")


def test_text_held_back_for_a_stop_string_is_given_at_the_end(client: OpenAI) -> None:
    text, reason, _ = completed(client, stop=["日本語!"])

    assert (text, reason) == (TEXT, "stop")


def test_tokens_after_a_stop_string_are_not_counted(client: OpenAI) -> None:
    # ids of single bytes in the tiny tokenizer: "!" is 2, '"' is 3, "#" is 4 and so on
    arguments: dict[str, Any] = {"prompt": list(range(2, 12)), "max_tokens": 50}
    everything, _, _ = completed(client, **arguments)
    text, reason, tokens = completed(client, stop=everything[4], **arguments)

    assert (text, reason, tokens) == (everything[:4], "stop", 5)


def test_stop_token_ids_end_the_answer_and_are_not_shown(client: OpenAI) -> None:
    everything, _, _ = completed(client, prompt=list(range(2, 12)))
    text, reason, tokens = completed(client, prompt=list(range(2, 12)), extra_body={"stop_token_ids": [5]})

    assert (text, reason, tokens) == (everything[:3], "stop", 4)


@pytest.mark.parametrize("prompt", [["Hello world"], [[2, 3, 4]], [2, 3, 4]])
def test_a_prompt_may_be_ids_or_a_list_of_one(client: OpenAI, prompt: Any) -> None:
    text, _, _ = completed(client, prompt=prompt)

    assert text == ("Hello world" if isinstance(prompt[0], str) else '!"#')


@pytest.fixture(scope="module")
def filling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose tokenizer knows a family's tokens for filling a hole."""
    folder = save_byte_level(tmp_path_factory.mktemp("filling"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    family = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": family})
    tokenizer.save_pretrained(folder)
    with running(folder, heads=fake_engine.LARGE) as server:
        yield server


def test_a_suffix_asks_for_what_stands_between_two_texts(filling: Running) -> None:
    asked: dict[str, Any] = {"prompt": "def f(", "suffix": "):", "max_tokens": 50}
    with filling.openai() as client:
        text, reason, _ = completed(client, **asked)

    # the fake engine repeats the task without its special tokens
    assert (text, reason) == ("def f():", "stop")
    several = {"model": MODEL, **asked, "prompt": ["a", "<|fim_pad|>b"], "n": 1}
    choices = filling.post("/v1/completions", several).json()["choices"]
    assert [choice["text"] for choice in choices] == ["a):", ""]
    # a padding token would end it, unless the answer is to go on
    through = filling.post("/v1/completions", {**several, "ignore_eos": True, "max_tokens": 4}).json()["choices"]
    assert [choice["text"] for choice in through] == ["a):", "b"]


def test_a_model_without_tokens_for_it_refuses_a_suffix(server: Running) -> None:
    refused = server.post("/v1/completions", {"model": MODEL, "prompt": "def f(", "suffix": "):"})

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "suffix"
    assert "no fill-in-the-middle tokens" in refused.json()["error"]["message"]


def test_nulls_are_defaults(server: Running) -> None:
    fields = "temperature top_p top_k min_p seed stop logit_bias logprobs n best_of echo suffix user stream ignore_eos"
    nulls = dict.fromkeys([*fields.split(), "stream_options", "speculation", "stop_token_ids", "max_tokens"])
    answer = server.post("/v1/completions", {"model": MODEL, "prompt": "Hello", **nulls})

    assert answer.status_code == 200
    assert "x-ignored-fields" not in answer.headers


def test_two_requests_at_once_both_complete(server: Running) -> None:
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        with server.openai() as client:
            answers[number] = (
                client.completions.create(model=MODEL, prompt=f"{TEXT} {number}", max_tokens=100).choices[0].text
            )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == {number: f"{TEXT} {number}" for number in range(6)}


def test_logprobs_come_with_every_token_and_alternatives_with_the_token_itself(server: Running) -> None:
    answer = server.post("/v1/completions", {"model": MODEL, "prompt": "abc", "max_tokens": 3, "logprobs": 1}).json()
    choice = answer["choices"][0]

    assert choice["text"] == "abc"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{letter: -0.5} for letter in "abc"],
        "text_offset": [0, 1, 2],
    }


@pytest.mark.parametrize("prompt", ["abc", [[66, 67, 68]]])
def test_a_harness_gets_the_scores_of_its_prompt(server: Running, prompt: object) -> None:
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    choice = server.post("/v1/completions", asked).json()["choices"][0]
    found = choice["logprobs"]

    assert choice["text"] == "abca"
    assert found["tokens"] == ["a", "b", "c", "a"]
    assert found["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    assert found["top_logprobs"] == [None, {"b": -0.5}, {"c": -0.5}, {"a": -0.5}]
    assert found["text_offset"] == [0, 1, 2, 3]


def test_an_echo_alone_needs_no_new_token(server: Running) -> None:
    asked = {"model": MODEL, "prompt": "abc", "max_tokens": 0, "echo": True}
    answer = server.post("/v1/completions", asked).json()

    assert answer["choices"][0]["text"] == "abc"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


def test_streamed_pieces_join_to_the_echo_and_its_scores(server: Running) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "abcdefgh", "max_tokens": 8, "logprobs": 2, "echo": True}
    with server.openai() as client:
        whole = client.completions.create(**asked)
        chunks = list(client.completions.create(**asked, stream=True))

    pieces = [chunk.choices[0] for chunk in chunks]
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text == "abcdefghabcdefgh"
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [entry for piece in pieces if piece.logprobs for entry in getattr(piece.logprobs, name)]
        assert streamed == getattr(whole.choices[0].logprobs, name)


def test_several_prompts_with_several_answers_are_numbered_prompt_by_prompt(server: Running) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": ["abc", "hello"], "n": 2, "max_tokens": 9}
    with server.openai() as client:
        whole = client.completions.create(**asked)
        chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))

    assert [(choice.index, choice.text) for choice in whole.choices] == [
        (0, "abc"),
        (1, "abc"),
        (2, "hello"),
        (3, "hello"),
    ]
    streamed = ["", "", "", ""]
    for choice in (chunk.choices[0] for chunk in chunks[:-1]):
        streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in whole.choices]
    ends = [chunk.choices[0].index for chunk in chunks[:-1] if chunk.choices[0].finish_reason is not None]
    assert ends == [0, 1, 2, 3]
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    # every prompt once; every answer repeats its prompt and ends with the stop token
    assert whole.usage.completion_tokens == 2 * (whole.usage.prompt_tokens + 2)


def test_a_stop_string_ends_its_own_answer_only(server: Running) -> None:
    asked = {"model": MODEL, "prompt": ["abcdefgh", "xyz"], "max_tokens": 20, "stop": "d", "ignore_eos": True}
    answer = server.post("/v1/completions", asked).json()

    assert [choice["text"] for choice in answer["choices"]] == ["abc", "xyz" * 6 + "xy"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]


def test_the_best_of_several_are_sent_and_all_are_paid(server: Running) -> None:
    asked = {"model": MODEL, "prompt": "abc", "n": 1, "best_of": 3, "max_tokens": 2}
    answer = server.post("/v1/completions", asked).json()

    assert [choice["index"] for choice in answer["choices"]] == [0]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens"] == 3


def test_several_answers_take_one_place_in_the_queue(server: Running) -> None:
    before = server.metrics().get("medusa_request_queue_time_seconds_count", 0)
    server.post("/v1/completions", {"model": MODEL, "prompt": "abc", "n": 5, "max_tokens": 2})

    assert server.metrics()["medusa_request_queue_time_seconds_count"] == before + 1


def test_offsets_count_the_special_tokens_of_an_echoed_prompt(server: Running) -> None:
    for prompt in ("hi<|end|>\nyou", "<|start|>a", "plain text"):
        asked = {"model": MODEL, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0}
        choice = server.post("/v1/completions", asked).json()["choices"][0]
        tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]

        assert choice["text"] == prompt
        assert [prompt[offset:][: len(token)] for token, offset in zip(tokens, offsets, strict=True)] == tokens
