import json
from collections.abc import Callable, Sequence
from typing import Any

import llguidance
import llguidance.hf
import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from medusa_core.config import model_location
from medusa_core.tool_formats import HERMES, LLAMA_JSON, MISTRAL_ARGS, TOOL_FORMATS, ToolFormat
from medusa_core.tool_grammar import forced_call_grammar, strict_call_grammar

every_format = pytest.mark.parametrize("tool_format", TOOL_FORMATS, ids=lambda row: row.name)

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [tool("weather", description="Of a city.", parameters=WEATHER), tool("weather-2")]
FIRST = ("weather", '{"city": "K\u00f6ln \\"{name\\"", "days": [1, 2]}')
SECOND = ("weather-2", "{}")


class Follower:
    """What a grammar allows, over the demo model's tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = llguidance.hf.from_tokenizer(tokenizer)
        self.end = tokenizer.eos_token_id

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        matcher = llguidance.LLMatcher(self.tokenizer, grammar)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def accepts(self, grammar: str, text: str | Sequence[int]) -> bool:
        tokens = self.tokenizer.tokenize_str(text) if isinstance(text, str) else list(text)
        matcher = self.matcher(grammar)
        return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())

    def next_tokens(self, grammar: str, text: str) -> list[int]:
        matcher = self.matcher(grammar)
        assert matcher.consume_tokens(self.tokenizer.tokenize_str(text))
        mask = matcher.compute_bitmask()
        return [8 * place + bit for place, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1]


@pytest.fixture(scope="module")
def demo() -> Follower:
    return Follower(PreTrainedTokenizerFast.from_pretrained(model_location("demo")))


def spelt(text: str) -> None:
    """No text is held as one token."""
    return None


def forced(
    tool_format: ToolFormat,
    function: str | None = None,
    is_parallel: bool = False,
    tools: Sequence[dict[str, Any]] = TOOLS,
    added_token_id: Callable[[str], int | None] = spelt,
) -> str:
    return forced_call_grammar(tools, function, is_parallel, tool_format, added_token_id)


def written(tool_format: ToolFormat, *calls: tuple[str, str]) -> str:
    before, between, after = tool_format.before_name, tool_format.before_arguments, tool_format.after_arguments
    texts = [before + name + between + arguments + after for name, arguments in calls]
    return tool_format.opener + tool_format.separator.join(texts) + tool_format.closer


@every_format
@pytest.mark.parametrize("call", [FIRST, SECOND], ids=["weather", "weather-2"])
def test_any_function_may_be_called_where_none_is_named(
    demo: Follower, tool_format: ToolFormat, call: tuple[str, str]
) -> None:
    assert demo.accepts(forced(tool_format), written(tool_format, call))


@every_format
def test_a_named_function_is_called_and_no_other(demo: Follower, tool_format: ToolFormat) -> None:
    grammar = forced(tool_format, "weather-2", is_parallel=True)

    assert demo.accepts(grammar, written(tool_format, SECOND))
    assert not demo.accepts(grammar, written(tool_format, FIRST))
    assert not demo.accepts(grammar, written(tool_format, SECOND, SECOND))


@every_format
def test_calls_follow_each_other_only_where_they_may_be_parallel(demo: Follower, tool_format: ToolFormat) -> None:
    three = written(tool_format, FIRST, SECOND, FIRST)

    assert demo.accepts(forced(tool_format, is_parallel=True), three)
    assert not demo.accepts(forced(tool_format, is_parallel=False), three)


@every_format
def test_only_the_end_follows_a_call(demo: Follower, tool_format: ToolFormat) -> None:
    assert demo.next_tokens(forced(tool_format), written(tool_format, FIRST)) == [demo.end]


@every_format
def test_the_end_may_follow_a_call_that_others_may_follow(demo: Follower, tool_format: ToolFormat) -> None:
    assert demo.end in demo.next_tokens(forced(tool_format, is_parallel=True), written(tool_format, FIRST))


@every_format
def test_nothing_but_a_call_is_an_answer(demo: Follower, tool_format: ToolFormat) -> None:
    grammar = forced(tool_format)

    assert not demo.accepts(grammar, "")
    assert not demo.accepts(grammar, "Hello")
    assert not demo.accepts(grammar, written(tool_format, ("weather-3", "{}")))


@pytest.mark.parametrize(
    "arguments",
    [
        "{}",
        '{"city": 1}',
        '{"city": "x", "more": 1}',
        '{"city": "x", "days": [1.5]}',
        '{"city":"x"}',
        '{"city": "x","days": []}',
        '{"city": "x", "days": [1,2]}',
        '{ "city": "x"}',
        '{"city": "x" }',
        '{\n"city": "x"}',
    ],
)
def test_arguments_follow_the_schema_in_the_style_of_json_dumps(demo: Follower, arguments: str) -> None:
    assert not demo.accepts(forced(HERMES), written(HERMES, ("weather", arguments)))


@pytest.mark.parametrize("more", [{}, {"parameters": None}])
def test_a_function_without_parameters_takes_an_empty_object(demo: Follower, more: dict[str, Any]) -> None:
    grammar = forced(LLAMA_JSON, tools=[tool("now", **more)])

    assert demo.accepts(grammar, written(LLAMA_JSON, ("now", "{}")))
    assert not demo.accepts(grammar, written(LLAMA_JSON, ("now", '{"a": 1}')))


def test_arguments_are_an_object_even_where_the_schema_allows_more(demo: Follower) -> None:
    grammar = forced(LLAMA_JSON, tools=[tool("now", parameters={"anyOf": [{"type": "string"}, {"type": "object"}]})])

    assert demo.accepts(grammar, written(LLAMA_JSON, ("now", '{"a": [1, null]}')))
    assert not demo.accepts(grammar, written(LLAMA_JSON, ("now", '"x"')))


def test_a_schema_may_refer_to_its_own_definitions(demo: Follower) -> None:
    item = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    schema = {
        "$defs": {"Item": item},
        "type": "object",
        "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/Item"}}},
        "required": ["items"],
    }
    grammar = forced(HERMES, tools=[tool("f", parameters=schema), tool("g", parameters=schema)])

    assert demo.accepts(grammar, written(HERMES, ("g", '{"items": [{"n": 1}, {"n": 2}]}')))
    assert not demo.accepts(grammar, written(HERMES, ("g", '{"items": [{"n": "1"}]}')))


@pytest.mark.parametrize(
    "word", ["\n%json {}", '"', "\\", "# no comment // none", "\u2028", "</tool_call>", "\U0001f642"]
)
def test_a_schemas_words_are_words_and_no_grammar(demo: Follower, word: str) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [word]}}, "required": ["a"], "additionalProperties": False}
    grammar = forced(HERMES, tools=[tool("f", parameters=schema)])

    assert demo.accepts(grammar, written(HERMES, ("f", json.dumps({"a": word}, ensure_ascii=False))))
    assert not demo.accepts(grammar, written(HERMES, ("f", '{"a": ""}')))


def test_a_schema_cannot_loosen_how_it_is_followed() -> None:
    schema = {"type": "object", "not": {}, "x-guidance": {"lenient": True, "whitespace_flexible": True}}
    grammar = forced(HERMES, tools=[tool("f", parameters=schema)])

    assert "Unimplemented" in llguidance.LLMatcher.validate_grammar(grammar)


def test_the_schema_of_the_request_is_left_as_it_was() -> None:
    schema = {"properties": {"a": {"type": "integer"}}}
    forced(HERMES, tools=[tool("f", parameters=schema)])

    assert schema == {"properties": {"a": {"type": "integer"}}}


def with_added(*added: AddedToken) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_location("demo"))
    tokenizer.add_tokens(list(added))
    return tokenizer


def ids_of_added(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], int | None]:
    ids = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    return ids.get


# Qwen's markers are added tokens that are not special; Mistral's are special.
@pytest.mark.parametrize("is_special", [False, True])
@pytest.mark.parametrize("tool_format", [HERMES, MISTRAL_ARGS], ids=lambda row: row.name)
def test_a_marker_that_is_one_token_is_written_as_that_token(
    demo: Follower, tool_format: ToolFormat, is_special: bool
) -> None:
    tokenizer = with_added(*(AddedToken(marker, special=is_special) for marker in tool_format.markers))
    follower = Follower(tokenizer)
    grammar = forced(tool_format, is_parallel=True, added_token_id=ids_of_added(tokenizer))
    text = written(tool_format, FIRST, SECOND)
    in_pieces = demo.tokenizer.tokenize_str(text)
    in_tokens = tokenizer.encode(text, add_special_tokens=False)

    assert {tokenizer.convert_tokens_to_ids(marker) for marker in tool_format.markers} <= set(in_tokens)
    assert follower.accepts(grammar, in_tokens)
    assert not follower.accepts(grammar, in_pieces)


def test_only_markers_are_looked_up() -> None:
    asked: list[str] = []

    def look_up(text: str) -> None:
        asked.append(text)

    forced(HERMES, added_token_id=look_up)

    assert set(asked) == set(HERMES.markers)


@pytest.mark.parametrize(("tools", "function"), [([], None), (TOOLS, "time")])
def test_a_function_that_nobody_offers_cannot_be_called(tools: list[dict[str, Any]], function: str | None) -> None:
    with pytest.raises(ValueError, match="no tool"):
        forced(HERMES, function, tools=tools)


marked_formats = pytest.mark.parametrize(
    "tool_format", [row for row in TOOL_FORMATS if row.markers], ids=lambda row: row.name
)
LOOSE = ("weather-2", '{"any": ["thing", 1]}')


def strict(tool_format: ToolFormat, is_parallel: bool = True) -> str:
    """Only the first function is strict."""
    grammar = strict_call_grammar(TOOLS, {"weather"}, is_parallel, tool_format, spelt, ())
    assert grammar is not None
    return grammar


@marked_formats
def test_an_answer_that_may_call_may_also_be_words(demo: Follower, tool_format: ToolFormat) -> None:
    for text in ("", "Hello\nworld", "a < b [TOOL", 'say {"name": "weather"}', "tool_call>"):
        assert demo.accepts(strict(tool_format), text), text


@marked_formats
def test_a_strict_function_is_called_as_its_schema_says_and_any_other_with_any_object(
    demo: Follower, tool_format: ToolFormat
) -> None:
    grammar = strict(tool_format)

    for call in (FIRST, LOOSE, SECOND):
        assert demo.accepts(grammar, "Well: " + written(tool_format, call))
    for call in (("weather", '{"city": 1}'), ("weather", "{}"), ("weather-3", "{}"), ("weather-2", "[]")):
        assert not demo.accepts(grammar, "Well: " + written(tool_format, call))


@marked_formats
def test_several_calls_are_made_where_they_may_be_parallel(demo: Follower, tool_format: ToolFormat) -> None:
    both = written(tool_format, FIRST, LOOSE)

    assert demo.accepts(strict(tool_format), both)
    assert not demo.accepts(strict(tool_format, is_parallel=False), both)
    assert demo.accepts(strict(tool_format, is_parallel=False), written(tool_format, FIRST))


def test_words_may_follow_a_call_that_has_an_end_of_its_own(demo: Follower) -> None:
    call = written(HERMES, FIRST)

    assert demo.accepts(strict(HERMES), f"one {call} two {call} three")
    assert not demo.accepts(strict(HERMES, is_parallel=False), f"one {call} two {call} three")
    assert demo.accepts(strict(HERMES, is_parallel=False), f"one {call} two")


def test_a_marker_that_is_a_token_of_its_own_begins_a_call_and_nothing_else_does() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_location("demo"))
    tokenizer.add_tokens([AddedToken("<tool_call>"), AddedToken("</tool_call>")])
    follower = Follower(tokenizer)
    grammar = strict_call_grammar(TOOLS, {"weather"}, True, HERMES, tokenizer.get_vocab().get, ())
    assert grammar is not None

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    assert follower.accepts(grammar, tokens("so " + written(HERMES, FIRST) + " and"))
    assert not follower.accepts(grammar, tokens("so " + written(HERMES, ("weather", '{"city": 1}'))))
    assert follower.accepts(grammar, tokens("no call"))


def test_nothing_is_enforced_where_nothing_is_strict_or_no_marker_begins_a_call() -> None:
    assert strict_call_grammar(TOOLS, set(), True, HERMES, spelt, ()) is None
    assert strict_call_grammar(TOOLS, {"weather"}, True, LLAMA_JSON, spelt, ()) is None


@pytest.mark.parametrize("has_marker_tokens", [True, False])
def test_a_model_may_reason_in_tokens_of_its_own_before_it_calls(has_marker_tokens: bool) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_location("demo"))
    names = ["<think>", "</think>", *(["<tool_call>", "</tool_call>"] if has_marker_tokens else [])]
    tokenizer.add_tokens([AddedToken(name) for name in names])
    vocabulary = tokenizer.get_vocab()
    follower = Follower(tokenizer)
    free = [vocabulary[name] for name in names]
    grammar = strict_call_grammar(TOOLS, {"weather"}, True, HERMES, vocabulary.get, free)
    assert grammar is not None

    def accepts(text: str) -> bool:
        return follower.accepts(grammar, tokenizer(text, add_special_tokens=False).input_ids)

    call = written(HERMES, FIRST)
    assert accepts("<think>hm, so</think>no call")
    assert accepts("<think></think>")
    assert accepts(f"<think>hm</think>\n{call}")
    assert accepts(f"a <think>hm</think> b {call} c <think>d</think>")
    assert not accepts("<think>hm</think>" + written(HERMES, ("weather", '{"city": 1}')))
