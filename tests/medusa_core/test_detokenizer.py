import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_core.text import TextCodec
from tests.tiny_tokenizers import save_byte_level, save_sentencepiece

TEXT = st.text(st.sampled_from("ab \nüß日本語🙂🚀👩‍👧"), max_size=12)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(str(save_byte_level(tmp_path_factory.mktemp("byte-level"))))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(str(save_sentencepiece(tmp_path_factory.mktemp("llama"))))


def cut_at(text: str, stops: list[str]) -> str:
    """The text before the stop string that is completed first, the longest of several that end together."""
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop and stop in text]
    return text[: min(ends)[1]] if ends else text


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_pieces_and_rest_join_to_the_decoded_text_cut_at_the_first_stop(codec: TextCodec, data: st.DataObject) -> None:
    spelled = codec.encode(data.draw(TEXT, "text"))
    noise = data.draw(st.lists(st.integers(0, codec.vocab_size - 1), max_size=40), "noise")
    tokens = spelled + noise if data.draw(st.booleans(), "text first") else noise + spelled
    stops = data.draw(st.lists(st.text("ab \n日🙂", max_size=3), max_size=3), "stops")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=8), "chunk borders"))

    stream = codec.stream(stops)
    shown, used = "", 0
    for start, end in itertools.pairwise([0, *cuts, len(tokens)]):
        piece = stream.push(tokens[start:end])
        shown, used = shown + piece.text, used + piece.tokens_used
        if piece.stopped:
            break
    shown += stream.finish()

    # A last character without its last bytes is the one thing that cannot be shown.
    assert shown == cut_at(codec.decode(tokens).rstrip("\ufffd"), stops)
    assert codec.decode(tokens[:used]).startswith(shown)


@settings(deadline=None, max_examples=100)
@given(text=TEXT, borders=st.lists(st.integers(0, 40), max_size=6))
def test_a_text_spelled_in_byte_fallback_tokens_arrives_whole(llama: TextCodec, text: str, borders: list[int]) -> None:
    tokens = llama.encode(text)
    stream = llama.stream()

    pieces = [
        stream.push(tokens[start:end]).text
        for start, end in itertools.pairwise(sorted({0, len(tokens), *(b for b in borders if b < len(tokens))}))
    ]

    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == llama.decode(tokens)


def test_no_piece_holds_half_a_character(codec: TextCodec) -> None:
    tokens = codec.encode("🙂")
    assert len(tokens) > 1
    stream = codec.stream()

    pieces = [stream.push([token]).text for token in tokens]

    assert pieces == [""] * (len(tokens) - 1) + ["🙂"]


def test_a_character_cut_by_the_limit_is_dropped_and_what_precedes_it_is_not(codec: TextCodec) -> None:
    stream = codec.stream()
    piece = stream.push([*codec.encode("ab"), *codec.encode("日")[:1]])

    assert piece.text + stream.finish() == "ab"


def test_byte_tokens_that_change_what_came_before_them_do_not_end_the_stream(llama: TextCodec) -> None:
    # The decoder reads a run of byte tokens as a whole: one stray byte turns the shown character into four marks.
    first, second, third = llama.encode("日")[-3:]
    stream = llama.stream()

    assert stream.push([first, second, third]).text == "日"
    assert stream.push([first]).text == ""
    assert stream.push(llama.encode("abc")).text.endswith("abc")


def test_invalid_bytes_for_ever_are_shown_at_last(codec: TextCodec) -> None:
    half = codec.encode("日")[:1]
    stream = codec.stream()

    assert stream.push(half * 100).text != ""


def test_a_stop_string_that_straddles_two_pushes_never_shows(codec: TextCodec) -> None:
    stream = codec.stream(["world"])

    first = stream.push(codec.encode("Hello wor"))
    second = stream.push(codec.encode("ld, how"))

    assert (first.text, first.stopped) == ("Hello ", False)
    assert (second.text, second.stopped) == ("", True)
    assert stream.finish() == ""


def test_text_that_only_began_a_stop_string_is_released(codec: TextCodec) -> None:
    stream = codec.stream(["world"])

    assert stream.push(codec.encode("wor")).text == ""
    assert stream.push(codec.encode("k")).text == "work"


def test_text_held_back_for_a_stop_string_is_flushed_at_the_end(codec: TextCodec) -> None:
    stream = codec.stream(["world"])

    assert stream.push(codec.encode("a wor")).text == "a "
    assert stream.finish() == "wor"


def test_no_more_is_held_back_than_may_begin_a_stop_string(codec: TextCodec) -> None:
    stream = codec.stream(["bbbx"])

    assert stream.push(codec.encode("aabb")).text == "aa"


def test_the_stop_string_completed_first_wins(codec: TextCodec) -> None:
    stream = codec.stream(["d e", "bcd efgh"])

    assert stream.push(codec.encode("abcd efgh")).text == "abc"


def test_of_stop_strings_that_end_together_the_longest_is_cut(codec: TextCodec) -> None:
    stream = codec.stream(["c", "abc"])

    assert stream.push(codec.encode("abc")).text == ""


def test_tokens_behind_a_stop_string_are_not_used(codec: TextCodec) -> None:
    before, after = codec.encode("Hello world"), codec.encode(" today today")
    stream = codec.stream(["world"])

    piece = stream.push(before + after)

    assert piece.tokens_used == len(before)
    assert stream.push(after).tokens_used == 0


def test_an_empty_stop_string_stops_nothing(codec: TextCodec) -> None:
    piece = codec.stream(["", "never"]).push(codec.encode("Hello"))

    assert (piece.text, piece.stopped) == ("Hello", False)


def test_a_stop_string_before_an_unfinished_character_is_cut_at_the_end(codec: TextCodec) -> None:
    stream = codec.stream(["b"])
    piece = stream.push([*codec.encode("ab"), *codec.encode("日")[:1]])

    assert piece.text + stream.finish() == "a"


def test_special_tokens_leave_no_text(codec: TextCodec) -> None:
    tokens = codec.encode("Hello<|end|>")

    assert codec.stream().push(tokens).text == "Hello"


def test_an_answer_that_continues_a_prompt_keeps_its_first_space(llama: TextCodec) -> None:
    prompt = llama.encode("Hello")
    answer = llama.encode("Hello world")[len(prompt) :]

    assert llama.stream(prompt=prompt).push(answer).text == " world"
    assert llama.stream().push(answer).text == "world"


def test_a_replacement_character_that_was_meant_is_shown_and_broken_bytes_are_not(codec: TextCodec) -> None:
    meant = codec.stream()
    shown = meant.push(codec.encode("a\ufffd")).text + meant.finish()
    broken = codec.stream()
    half = codec.encode("a🙂")[:-1]

    assert shown == "a\ufffd"
    assert broken.push(half).text + broken.finish() == "a"
