import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from medusa_core.tool_formats import HERMES, LLAMA_JSON, MISTRAL_ARGS, MISTRAL_LIST, ToolFormat
from server.call_events import CallArguments, CallOpened, Content, Reasoning, WholeMessage, fold
from server.tool_calls import MAX_KEPT, SLICE, FreeCallStream, ResponseParser
from tests.server.call_texts import calls_in, events_of, every_format, message_of, numbered, pieces

# As tokenizers ship them: reasoning, a marker that takes the whitespace before it, JSON that raises.
THINKING = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "content": {},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {
                "type": "function",
                "function": {"name": "{content.name}", "arguments": "{content.arguments}"},
            },
        },
    },
}
TURN = "<|im_start|>user\nHi<tool_call><|im_end|>\n<|im_start|>assistant\n"

ARGUMENTS = '{"city": "K\u00f6ln", "list": [{"a": 1}, {"a": 2}]}'
CALL = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
WEATHER = ("weather", ARGUMENTS)


def region(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


@pytest.fixture(scope="module")
def parser_of() -> Callable[[Mapping[str, Any], str], ResponseParser]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))

    def build(template: Mapping[str, Any], prompt: str) -> ResponseParser:
        parser: ResponseParser = tokenizer.get_response_parser(dict(template), prefix=prompt)
        return parser

    return build


ParserOf = Callable[[Mapping[str, Any], str], ResponseParser]


def free(parser_of: ParserOf, template: Mapping[str, Any], prompt: str = "") -> FreeCallStream:
    return FreeCallStream(lambda prefix: parser_of(template, prefix), prompt, numbered())


def test_text_without_calls_is_content_to_the_letter(parser_of: ParserOf) -> None:
    for text in (
        "",
        "Hello",
        "\n  Hello, \n world. \n",
        " \n ",
        "a < b <tool",
        "<tool_call",
        "</tool_call>",
        "a\u00a0",
    ):
        for length in (1, 3, 100):
            message = message_of(free(parser_of, HERMES.response_template), *pieces(text, length))

            assert message == WholeMessage(text, None, [])


def test_content_is_shown_before_the_answer_ends(parser_of: ParserOf) -> None:
    stream = free(parser_of, HERMES.response_template)

    assert stream.feed("Hello") == [Content("Hello")]
    assert stream.feed(" <tool_c") == []
    assert stream.feed("an>") == [Content(" <tool_can>")]


def test_a_call_is_shown_whole_when_its_region_ends(parser_of: ParserOf) -> None:
    stream = free(parser_of, HERMES.response_template)
    text = region(CALL)

    assert stream.feed(text[:-1]) == []
    assert stream.feed(text[-1:]) == [CallOpened(0, "id0", "weather"), CallArguments(0, ARGUMENTS)]
    assert stream.finish() == []


@every_format
def test_calls_of_every_format_are_found(parser_of: ParserOf, tool_format: ToolFormat) -> None:
    before, between, after = tool_format.before_name, tool_format.before_arguments, tool_format.after_arguments
    calls = [f"{before}{name}{between}{ARGUMENTS}{after}" for name in ("first", "second", "third")]
    text = "Well. " + tool_format.opener + tool_format.separator.join(calls) + tool_format.closer

    for length in (1, 5, 1000):
        events = events_of(free(parser_of, tool_format.response_template), pieces(text, length))

        assert fold(events).content == "Well."
        assert calls_in(fold(events)) == [("first", ARGUMENTS), ("second", ARGUMENTS), ("third", ARGUMENTS)]
        assert [(e.index, e.id) for e in events if isinstance(e, CallOpened)] == [(0, "id0"), (1, "id1"), (2, "id2")]


# None of these is a call, each for a reason of its own.
NO_CALLS = [
    "",
    "bad",
    "{",
    CALL[:-1],
    CALL + "}",
    "[]",
    "[1]",
    "null",
    '"weather"',
    "{}",
    '{"name": "f"}',
    '{"arguments": {}}',
    '{"name": 1, "arguments": {}}',
    '{"name": "", "arguments": {}}',
    '{"name": "\\ud800", "arguments": {}}',
    '{"name": "f", "arguments": null}',
    '{"name": "f", "arguments": []}',
    '{"name": "f", "arguments": "{"}',
    '{"name": "f", "arguments": "[]"}',
    '{"name": "f", "arguments": {"a": NaN}}',
    '{"name": "f", "arguments": {"a": 1' + "0" * 5000 + "}}",
    '{"name": "f", "arguments": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
]


@pytest.mark.parametrize("template", [HERMES.response_template, THINKING], ids=["lenient", "raising"])
@pytest.mark.parametrize("body", NO_CALLS, ids=lambda body: body[:40])
def test_a_region_that_holds_no_call_is_content_and_what_follows_is_read(
    parser_of: ParserOf, template: Mapping[str, Any], body: str
) -> None:
    raw = region(body)
    text = f"Well. {raw} So: {region(CALL)}\n{raw}"

    for length in (100, len(text)):
        message = message_of(free(parser_of, template), *pieces(text, length))

        assert message.content is not None
        assert message.content.split() == f"Well. {raw} So: {raw}".split()
        assert message.content.startswith(f"Well. {raw} So:")
        assert calls_in(message) == [WEATHER]


@pytest.mark.parametrize(
    ("tool_format", "text", "content", "names"),
    [
        (HERMES, f"<tool_call>{region(CALL)}", f"<tool_call>{region(CALL)}", []),
        (LLAMA_JSON, '{"name": bad}; {"name": "f", "parameters": {}}', '{"name": bad};', ["f"]),
        (LLAMA_JSON, '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),
        (MISTRAL_ARGS, "[TOOL_CALLS]f[ARGS]{bad[TOOL_CALLS]g[ARGS]{}", "[TOOL_CALLS]f[ARGS]{bad", ["g"]),
        (MISTRAL_ARGS, "[TOOL_CALLS]f", "[TOOL_CALLS]f", []),
        (MISTRAL_LIST, "[TOOL_CALLS][]", "[TOOL_CALLS][]", []),
        (MISTRAL_LIST, f"[TOOL_CALLS][{CALL}, 1]", f"[TOOL_CALLS][{CALL}, 1]", []),
    ],
)
def test_a_broken_call_does_not_take_the_next_one_along(
    parser_of: ParserOf, tool_format: ToolFormat, text: str, content: str, names: list[str]
) -> None:
    for length in (1, 4, 1000):
        message = message_of(free(parser_of, tool_format.response_template), *pieces(text, length))

        assert message.content is not None and message.content.strip() == content
        assert [name for name, _ in calls_in(message)] == names


@pytest.mark.parametrize(("tail", "calls"), [(CALL, [WEATHER]), (CALL[:-1], []), ("", [])])
def test_a_call_that_the_end_cuts_off_is_content_unless_it_was_whole(
    parser_of: ParserOf, tail: str, calls: list[tuple[str, str]]
) -> None:
    message = message_of(free(parser_of, HERMES.response_template), "Well. <tool_call>" + tail)

    assert calls_in(message) == calls
    assert message.content == ("Well." if calls else "Well. <tool_call>" + tail)


def test_whitespace_that_parts_calls_from_the_rest_is_markup(parser_of: ParserOf) -> None:
    def content_of(text: str) -> str | None:
        return message_of(free(parser_of, HERMES.response_template), text).content

    call = region(CALL)
    assert content_of(f"\n{call}\n{call}\n") is None
    assert content_of(f"Well.\n\n{call}\n{call}\n") == "Well."
    assert content_of(f"{call}\n\nDone. ") == "Done. "
    assert content_of(f"One \n{call} two") == "One \n two"


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"a":"\u00f6\\u00f6","b":1.0,"b":2}', '{"a": "\u00f6\u00f6", "b": 2}'),
        ('"{\\"a\\":1}"', '{"a": 1}'),
        ('{"a": "\\ud83d\\ude42"}', '{"a": "\U0001f642"}'),
        # JSON may spell half a character, UTF-8 may not
        ('{"a": "\\ud800"}', '{"a": "\\ud800"}'),
    ],
)
def test_arguments_are_json_in_a_string_that_can_be_sent(parser_of: ParserOf, written: str, arguments: str) -> None:
    text = region(f'{{"name": "f", "arguments": {written}}}')

    found = calls_in(message_of(free(parser_of, HERMES.response_template), text))

    assert found == [("f", arguments)]
    assert json.loads(found[0][1].encode())


def test_reasoning_is_told_from_content(parser_of: ParserOf) -> None:
    text = f"<think>\nHm. \n</think>\n\nWell.\n{region(CALL)}"

    for length in (1, 7, 1000):
        message = message_of(free(parser_of, THINKING, TURN), *pieces(text, length))

        assert (message.reasoning, message.content, calls_in(message)) == ("Hm.", "Well.", [WEATHER])


def test_reasoning_may_have_begun_in_the_prompt(parser_of: ParserOf) -> None:
    stream = free(parser_of, THINKING, TURN + "<think>\n")

    assert stream.feed("Hm") == [Reasoning("Hm")]
    message = fold([*stream.feed(f" <tool_call> \n</think>{region(CALL)}{region('bad')}"), *stream.finish()])
    assert (message.reasoning, message.content, calls_in(message)) == (" <tool_call>", region("bad"), [WEATHER])


def test_text_of_a_marked_region_can_be_content(parser_of: ParserOf) -> None:
    template = {
        "start_anchor": "<|start|>assistant",
        "fields": {
            "thinking": {"open": "<|analysis|>", "close": "<|end|>"},
            "content": {"open": "<|final|>", "close": "<|end|>"},
            "note": {"open": "<|note|>", "close": "<|end|>"},
            "tool_calls": {"open": "<|call|>", "close": "<|end|>", "repeats": True, "content": "json"},
        },
    }
    text = f"<|analysis|>Hm.<|end|><|note|>secret<|end|><|final|>Well.<|end|><|call|>{CALL}<|end|>"

    for length in (1, 7, 1000):
        message = message_of(free(parser_of, template, "<|start|>assistant"), *pieces(text, length))

        assert (message.reasoning, message.content, calls_in(message)) == ("Hm.", "Well.", [WEATHER])
        broken = message_of(free(parser_of, template), *pieces("<|final|>Well.<|end|><|call|>bad<|end|>", length))
        assert broken.content == "Well.<|end|><|call|>bad<|end|>"


FRAGMENTS = {
    "hermes": (HERMES.response_template, ["<tool_call>", "</tool_call>", region(CALL), "<", "tool_call", CALL]),
    "llama": (
        LLAMA_JSON.response_template,
        ['{"name": "f", "parameters": {}}', '{"name"', ": ", "}", "{", ";", "<|python_tag|>", "; "],
    ),
    "mistral args": (MISTRAL_ARGS.response_template, ["[TOOL_CALLS]", "f[ARGS]", "{}", "{", "[", '[ARGS]{"a": 1}']),
    "mistral list": (MISTRAL_LIST.response_template, ["[TOOL_CALLS]", "[", CALL, ", ", "]", "[TOOL"]),
    "thinking": (THINKING, ["<think>", "</think>", "<tool_call>", "</tool_call>", region(CALL), CALL, "<"]),
}


@st.composite
def cut_text(draw: st.DrawFn, fragments: Sequence[str]) -> list[str]:
    parts = st.one_of(st.sampled_from(fragments), st.sampled_from(["\n", " ", "Well.", "\u00e9", "x" * SLICE]))
    text = "".join(draw(st.lists(parts, max_size=12)))
    cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=40))})
    return [text[start:end] for start, end in pairwise(cuts)]


@pytest.mark.parametrize("kind", FRAGMENTS)
@given(data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_where_the_text_is_cut_changes_nothing(parser_of: ParserOf, kind: str, data: st.DataObject) -> None:
    template, fragments = FRAGMENTS[kind]
    parts = data.draw(cut_text(fragments))

    at_once = message_of(free(parser_of, template, TURN), "".join(parts))

    assert message_of(free(parser_of, template, TURN), *parts) == at_once
    assert message_of(free(parser_of, template, TURN), *"".join(parts)) == at_once


@given(data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_letter_of_the_answer_is_lost(parser_of: ParserOf, data: st.DataObject) -> None:
    # the calls are whole here, so what is left of the text without them is the content
    fragments = [region(CALL), region("bad"), "</tool_call>", "<tool_ca", "Well.", "\n", " ", "x" * SLICE]
    parts = data.draw(st.lists(st.sampled_from(fragments), max_size=12))

    message = message_of(free(parser_of, HERMES.response_template), *parts)

    without_calls = "".join(part for part in parts if part != region(CALL))
    assert "".join((message.content or "").split()) == "".join(without_calls.split())
    assert calls_in(message) == [WEATHER] * parts.count(region(CALL))
    if region(CALL) not in parts:
        assert message.content == without_calls


class Counting:
    """A parser that notes what it is given."""

    def __init__(self, parser: ResponseParser, lengths: list[int]) -> None:
        self._parser = parser
        self._lengths = lengths
        self.initial_events = parser.initial_events
        lengths.append(0)

    def feed(self, text: str) -> list[dict[str, Any]]:
        self._lengths[-1] += len(text)
        return self._parser.feed(text)

    def finalize(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return self._parser.finalize()


def lengths_read(parser_of: ParserOf, tool_format: ToolFormat, texts: Iterator[str] | Sequence[str]) -> list[int]:
    """Characters given to each parser in turn."""
    lengths: list[int] = []
    stream = FreeCallStream(
        lambda prefix: Counting(parser_of(tool_format.response_template, prefix), lengths), "", numbered()
    )
    events_of(stream, list(texts))
    return lengths


# The longer ones end no region, so that all of them would be read again at each of their pieces.
HOSTILE = [
    (HERMES, "<tool_call>", 200_000),
    (HERMES, "\n", 200_000),
    (HERMES, "<tool_call></tool_call>", 40_000),
    (HERMES, region(CALL), 40_000),
    (LLAMA_JSON, '{"name":', 200_000),
    (LLAMA_JSON, "{ ", 200_000),
    (LLAMA_JSON, '}{"name":', 200_000),
    (LLAMA_JSON, '{"name":};', 40_000),
    (MISTRAL_ARGS, "[TOOL_CALLS]", 200_000),
    (MISTRAL_ARGS, "[TOOL_CALLS]a[ARGS]", 40_000),
    (MISTRAL_LIST, "[TOOL_CALLS][", 200_000),
]


@pytest.mark.parametrize(("tool_format", "unit", "length"), HOSTILE, ids=lambda part: getattr(part, "name", part))
def test_hostile_text_is_read_a_bounded_number_of_times(
    parser_of: ParserOf, tool_format: ToolFormat, unit: str, length: int
) -> None:
    text = unit * (length // len(unit))

    # as it came, to find the end of a region, and the rest of a piece or what was read ahead as part of the next one
    assert sum(lengths_read(parser_of, tool_format, pieces(text, 8))) <= 4 * length


def test_many_regions_in_one_piece_cost_a_slice_each(parser_of: ParserOf) -> None:
    unit = "<tool_call></tool_call>"
    text = unit * (20_000 // len(unit))

    lengths = lengths_read(parser_of, HERMES, [text])

    assert max(lengths) <= 2 * SLICE
    assert sum(lengths) <= len(text) / len(unit) * 2 * SLICE


def test_a_parser_is_not_made_to_keep_all_content(parser_of: ParserOf) -> None:
    lengths = lengths_read(parser_of, HERMES, pieces("Hello world. " * 10_000, 13))

    assert max(lengths) <= MAX_KEPT + SLICE
    assert sum(lengths) == 130_000
