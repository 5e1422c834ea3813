from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from medusa_core.errors import InvalidParameter, UnsupportedParameter
from medusa_core.infill import INFILL_FORMATS, PREFIX, SUFFIX, InfillFormat
from medusa_core.text import TextCodec
from tests.tiny_tokenizers import save_byte_level, save_sentencepiece

QWEN, STARCODER, DEEPSEEK, CODELLAMA = INFILL_FORMATS


def with_tokens(folder: Path, *tokens: str) -> TextCodec:
    """The tiny tokenizer that also knows these special tokens."""
    save_byte_level(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.save_pretrained(folder)
    return TextCodec.load(str(folder))


@pytest.mark.parametrize("row", [QWEN, STARCODER, DEEPSEEK], ids=lambda row: row.order[0])
def test_a_task_is_written_as_the_family_was_trained(tmp_path: Path, row: InfillFormat) -> None:
    codec = with_tokens(tmp_path, *row.tokens, *row.ends)
    begin, hole, end = row.tokens

    text = codec.decode(codec.encode_infill("def f(", "):\n"), skip_special_tokens=False)

    assert text == f"{begin}def f({hole}):\n{end}"
    assert [codec.token_string(token) for token in codec.infill_ends] == list(row.ends)


def test_a_row_needs_all_of_its_tokens(tmp_path: Path) -> None:
    codec = with_tokens(tmp_path, *QWEN.tokens[:2], *STARCODER.tokens, "<fim_pad>")

    assert codec.token_string(codec.encode_infill("a", "b")[0]) == "<fim_prefix>"
    assert [codec.token_string(token) for token in codec.infill_ends] == ["<fim_pad>"]


def test_codellama_gets_its_bos_and_a_suffix_without_a_space_of_its_own(tmp_path: Path) -> None:
    save_sentencepiece(tmp_path)
    plain = TextCodec.load(str(tmp_path))
    tokenizer = plain._tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": [*CODELLAMA.tokens, *CODELLAMA.ends]})
    tokenizer.save_pretrained(tmp_path)
    codec = TextCodec.load(str(tmp_path))
    pre, suf, mid = (codec._token_id(token) for token in CODELLAMA.tokens)

    tokens = codec.encode_infill("def", "text.strip()")

    bos, *prefix = codec.encode("def")
    assert tokens[: 3 + len(prefix)] == [bos, pre, *prefix, suf]
    suffix = tokens[3 + len(prefix) : -1]
    assert tokens[-1] == mid
    assert "".join(str(codec.token_string(token)) for token in suffix) == "text.strip()"
    assert "".join(str(codec.token_string(token)) for token in prefix) == "▁def"


def test_a_model_without_such_tokens_says_so(tmp_path: Path) -> None:
    codec = TextCodec.load(str(save_byte_level(tmp_path)))

    assert codec.infill_ends == []
    with pytest.raises(UnsupportedParameter, match="no fill-in-the-middle tokens") as caught:
        codec.encode_infill("a", "b")
    assert caught.value.param == "suffix"


def test_half_a_character_is_blamed_on_the_text_that_holds_it(tmp_path: Path) -> None:
    codec = with_tokens(tmp_path, *QWEN.tokens)

    for prefix, suffix, param in (("\ud800", "b", "prompt"), ("a", "\ud800", "suffix")):
        with pytest.raises(InvalidParameter) as caught:
            codec.encode_infill(prefix, suffix)
        assert caught.value.param == param


def test_every_order_holds_both_texts_and_three_tokens() -> None:
    for row in INFILL_FORMATS:
        assert len(row.tokens) == 3
        assert row.order.count(PREFIX) == row.order.count(SUFFIX) == 1
