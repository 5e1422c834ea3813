from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from medusa_core.text import TextCodec
from medusa_core.token_bytes import byte_level_alphabet
from tests.tiny_tokenizers import save_byte_level, save_sentencepiece

TEXTS = ("Hello world", " two  spaces\n\tand a tab", "Gr\u00fc\u00dfe, \u65e5\u672c\u8a9e \U0001f642")


@pytest.fixture(scope="module", params=[save_byte_level, save_sentencepiece])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder: Path = request.param(tmp_path_factory.mktemp("tokenizer") / "tiny")
    return TextCodec.load(str(folder))


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_all_tokens_spell_the_text(codec: TextCodec, text: str) -> None:
    tokens = [token for token in codec.encode(text) if codec.decode([token]) != "" or token > 2]

    assert b"".join(codec.token_bytes(token) for token in tokens).decode().strip(" ") == text.strip(" ")


def test_the_alphabet_is_the_one_tokenizers_use() -> None:
    alphabet = byte_level_alphabet()

    assert set(alphabet) == set(ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))


def test_a_special_token_spells_its_name(tmp_path: Path) -> None:
    codec = TextCodec.load(str(save_byte_level(tmp_path)))

    assert codec.token_bytes(1) == b"<|end|>"


def test_an_id_without_a_token_spells_nothing(codec: TextCodec) -> None:
    assert codec.token_bytes(10**6) == b""
