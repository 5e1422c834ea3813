from pathlib import Path

import pytest
from starlette.testclient import TestClient

from medusa_core.errors import CheckpointError, MissingChatTemplate
from server.assembly import assemble
from server.settings import Settings
from tests.server import fake_engine
from tests.tiny_tokenizers import save_byte_level


def test_a_server_is_put_together_from_its_settings_alone_and_starts_with_its_lifespan(tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    assembly = assemble(Settings(model=str(tmp_path), served_model_name="tiny", queue_size=3), fake_engine.FACTORY)
    before = assembly.worker.pid

    with TestClient(assembly.app) as client:
        health, metrics = client.get("/health"), client.get("/metrics")
        during = assembly.worker.pid

    assert before is None
    assert during is not None
    assert health.status_code == 200
    assert 'medusa_queue_capacity{model_name="tiny"} 3.0' in metrics.text
    assert assembly.codec.has_chat_template


def test_clients_are_told_the_served_name_of_a_model_without_a_template_and_not_its_path(tmp_path: Path) -> None:
    save_byte_level(tmp_path, chat_template=None)
    codec = assemble(Settings(model=str(tmp_path), served_model_name="tiny"), fake_engine.FACTORY).codec

    with pytest.raises(MissingChatTemplate, match="the model 'tiny' has no chat template"):
        codec.encode_chat([{"role": "user", "content": "Hello"}])


def test_a_folder_without_a_tokenizer_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer"):
        assemble(Settings(model=str(tmp_path)), fake_engine.FACTORY)
