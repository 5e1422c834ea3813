from pathlib import Path

import pytest

from medusa_core.chat_templates import VICUNA
from medusa_core.errors import CheckpointError, ConfigurationError
from medusa_core.training.tokenizer import load_data_tokenizer
from tests.tiny_tokenizers import CHAT_TEMPLATE, save_byte_level, save_sentencepiece


def test_the_checkpoints_own_template_is_used(tmp_path: Path) -> None:
    assert load_data_tokenizer(str(save_byte_level(tmp_path)), None).chat_template == CHAT_TEMPLATE


def test_a_known_model_without_a_template_gets_the_one_the_server_uses(tmp_path: Path) -> None:
    folder = save_sentencepiece(tmp_path, name="lmsys/vicuna-7b-v1.3")

    assert load_data_tokenizer(str(folder), None).chat_template == VICUNA


def test_a_file_goes_before_every_other_template(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("own")

    assert load_data_tokenizer(str(save_byte_level(tmp_path)), tmp_path / "own.jinja").chat_template == "own"


def test_a_template_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"own\.jinja.* cannot be read"):
        load_data_tokenizer(str(save_byte_level(tmp_path)), tmp_path / "own.jinja")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor"):
        load_data_tokenizer(str(tmp_path), None)
