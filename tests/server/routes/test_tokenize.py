from pathlib import Path
from typing import Any

import pytest

from tests.server import fake_engine
from tests.server.running import MODEL, Running, running
from tests.tiny_tokenizers import save_sentencepiece

MESSAGES = [{"role": "user", "content": "Grüße 🙂"}]
RENDERED = "<|start|>user\nGrüße 🙂<|end|><|start|>assistant\n"


def tokenize(server: Running, **body: Any) -> dict[str, Any]:
    answer = server.post("/tokenize", body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def detokenize(server: Running, tokens: list[int]) -> str:
    text: str = server.post("/detokenize", {"model": MODEL, "tokens": tokens}).json()["prompt"]
    return text


def test_a_text_is_its_ids_and_back(server: Running) -> None:
    found = tokenize(server, model=MODEL, prompt="Hello world", return_token_strs=True)

    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 400
    assert "".join(found["token_strs"]) == "HelloĠworld"
    assert detokenize(server, found["tokens"]) == "Hello world"
    assert tokenize(server, prompt="Hello world") == {**found, "token_strs": None}
    assert tokenize(server, prompt="") == {"count": 0, "max_model_len": 400, "tokens": [], "token_strs": None}


def test_a_conversation_is_what_the_model_would_be_given(server: Running) -> None:
    found = tokenize(server, messages=MESSAGES)
    usage = server.post("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES}).json()["usage"]

    assert found["count"] == usage["prompt_tokens"]
    assert detokenize(server, found["tokens"]) == RENDERED
    closed = tokenize(server, messages=MESSAGES, add_generation_prompt=False)
    assert detokenize(server, closed["tokens"]) == RENDERED.removesuffix("<|start|>assistant\n")
    open_ended = tokenize(
        server, messages=[*MESSAGES, {"role": "assistant", "content": "Well,"}], continue_final_message=True
    )
    assert detokenize(server, open_ended["tokens"]) == RENDERED + "Well,"


def test_special_tokens_are_added_as_asked(tmp_path: Path) -> None:
    with running(save_sentencepiece(tmp_path / "vicuna-7b-v1.5"), heads=fake_engine.LARGE) as server:
        bos, *rest = tokenize(server, prompt="Hello")["tokens"]
        assert tokenize(server, prompt="Hello", add_special_tokens=False)["tokens"] == rest
        chat = tokenize(server, messages=MESSAGES)["tokens"]
        assert (chat[0], chat.count(bos)) == (bos, 1)
        assert tokenize(server, messages=MESSAGES, add_special_tokens=True)["tokens"] == [bos, *chat]


def test_the_tokenizer_needs_no_loaded_model(tmp_path: Path) -> None:
    with running(tmp_path, heads=fake_engine.DIES) as server:
        assert tokenize(server, prompt="Hello")["max_model_len"] is None


def test_the_tokenizer_is_behind_the_key(tmp_path: Path) -> None:
    with running(tmp_path, api_key="sesame") as server:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
            assert server.post(path, body).status_code == 401
            assert server.post(path, body, headers={"authorization": "Bearer sesame"}).status_code == 200


@pytest.mark.parametrize("tokens", [[5, 300], [2**32 - 1]])
def test_ids_outside_the_vocabulary_are_a_400(server: Running, tokens: list[int]) -> None:
    refused = server.post("/detokenize", {"tokens": tokens})

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tokens"
    assert f"token id {tokens[-1]} is outside" in refused.json()["error"]["message"]


def test_unknown_fields_are_named_in_a_header(server: Running) -> None:
    assert server.post("/tokenize", {"prompt": "a", "guidance": 1}).headers["x-ignored-fields"] == "guidance"
    assert "x-ignored-fields" not in server.post("/detokenize", {"tokens": [5]}).headers
