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
    with running(tmp_path / "my-model", served_model_name=None) as server:
        assert server.get("/v1/models").json()["data"][0]["id"] == "my-model"
