from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

from tests.server.running import MODEL, running


def test_the_served_model_is_listed_with_its_context(client: OpenAI) -> None:
    (model,) = client.models.list().data

    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "medusa")
    assert model.model_extra == {"max_model_len": 400, "quantization": "none", "adapter": False}
    assert client.models.retrieve(MODEL) == model


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve("gpt-4o")

    assert caught.value.code == "model_not_found"


def test_a_name_may_hold_a_slash(tmp_path: Path) -> None:
    with running(tmp_path, served_model_name="org/tiny") as server, server.openai() as client:
        assert client.models.retrieve("org/tiny").id == "org/tiny"
        assert client.completions.create(model="org/tiny", prompt="Hello").model == "org/tiny"


def test_a_folder_is_served_under_its_name(tmp_path: Path) -> None:
    with running(tmp_path / "my-model", served_model_name=()) as server:
        assert server.get("/v1/models").json()["data"][0]["id"] == "my-model"


def test_every_name_of_the_model_is_listed_and_answers_show_the_first(tmp_path: Path) -> None:
    with running(tmp_path, served_model_name="tiny,gpt-4o") as server, server.openai() as client:
        assert [model.id for model in client.models.list()] == ["tiny", "gpt-4o"]
        assert client.models.retrieve("gpt-4o").id == "gpt-4o"
        assert client.completions.create(model="gpt-4o", prompt="Hello", max_tokens=1).model == "tiny"
        with pytest.raises(NotFoundError, match="served: tiny, gpt-4o"):
            client.completions.create(model="gpt-5", prompt="Hello")


def test_where_any_name_is_taken_answers_and_metrics_name_the_served_one(tmp_path: Path) -> None:
    with running(tmp_path, any_model_name=True) as server, server.openai() as client:
        stream = client.chat.completions.create(
            model="whatever-9", messages=[{"role": "user", "content": "Hello"}], max_tokens=2, stream=True
        )
        assert {chunk.model for chunk in stream} == {MODEL}
        assert client.models.retrieve("whatever-9").id == MODEL
        tokenized = server.post("/tokenize", {"model": "whatever-9", "prompt": "Hello"})
        shown = server.get("/metrics").text

    assert tokenized.status_code == 200
    assert "whatever-9" not in shown
    assert f'model_name="{MODEL}"' in shown
