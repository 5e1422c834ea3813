import pytest

from medusa_core.text import TextCodec
from server.token_scores import ScoredToken, chat_logprobs, completion_logprobs, spelling
from server.worker.messages import TokenLogprobs
from tests.tiny_tokenizers import save_byte_level


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(str(save_byte_level(tmp_path_factory.mktemp("tiny"))))


def halves(codec: TextCodec) -> list[int]:
    """Tokens that hold one byte each of a character that the tokenizer has no token for."""
    return codec.encode("\u00f8")


def test_half_a_character_is_spelt_by_its_byte(codec: TextCodec) -> None:
    found = halves(codec)

    assert [spelling(codec, token) for token in found] == ["bytes:\\xc3", "bytes:\\xb8"]
    entries = chat_logprobs([ScoredToken(token, 0, TokenLogprobs(-1.0, [])) for token in found], codec)["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "\u00f8"


def test_lists_of_a_completion_have_one_length(codec: TextCodec) -> None:
    tokens = [ScoredToken(2, 0, None), ScoredToken(3, 1, TokenLogprobs(-1.5, [(3, -1.5), (4, -2.0)]))]

    assert completion_logprobs(tokens, codec) == {
        "tokens": ["!", '"'],
        "token_logprobs": [None, -1.5],
        "top_logprobs": [None, {'"': -1.5, "#": -2.0}],
        "text_offset": [0, 1],
    }


def test_the_token_itself_is_among_its_alternatives(codec: TextCodec) -> None:
    tokens = [ScoredToken(5, 0, TokenLogprobs(-4.0, [(3, -0.5)]))]

    assert completion_logprobs(tokens, codec)["top_logprobs"] == [{'"': -0.5, "$": -4.0}]


def test_infinity_is_no_json(codec: TextCodec) -> None:
    never = ScoredToken(5, 0, TokenLogprobs(float("-inf"), [(3, float("-inf"))]))

    assert completion_logprobs([never], codec)["token_logprobs"] == [-9999.0]
    assert chat_logprobs([never], codec)["content"][0]["top_logprobs"][0]["logprob"] == -9999.0
