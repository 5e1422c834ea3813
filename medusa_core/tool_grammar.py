"""Grammars of tool calls, forced ones and strict ones, in llguidance's Lark dialect: text in, text out.

The JSON is written as Python's `json.dumps` writes it, which is what models have seen: ", " and ": " and no other
whitespace. Whether a schema can be followed is found out by whoever compiles the grammar.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from medusa_core.tool_formats import ToolFormat

__all__ = ["forced_call_grammar", "strict_call_grammar"]

# What a function without parameters takes.
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
# Placed last, so that a schema cannot loosen its own rules (`lenient` would skip keywords that are not implemented).
_JSON_STYLE = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}


def forced_call_grammar(
    tools: Sequence[Mapping[str, Any]],
    function: str | None,
    is_parallel: bool,
    tool_format: ToolFormat,
    added_token_id: Callable[[str], int | None],
) -> str:
    """A grammar under which an answer is a tool call and nothing else; after it only the end token follows.

    tools:          `{"type": "function", "function": {"name", "parameters"?}}`, names of [a-zA-Z0-9_-] and all
                    different. Arguments are an object that follows `parameters`.
    function:       the one function that may be called; None: any of them.
    is_parallel:    any function may be followed by further calls; a named one is called once.
    added_token_id: the id under which the tokenizer holds a marker as one token, None where it spells it in pieces.
                    Any added token counts, marked special or not: llguidance lets none that looks like `<...>` stand
                    for its letters.

    Raises ValueError when no tool has that name, or there is none.
    """
    functions = [tool["function"] for tool in tools if function in (None, tool["function"]["name"])]
    if not functions:
        raise ValueError(f"no tool is named {function!r}" if function is not None else "there is no tool to call")

    def piece(text: str) -> str:
        return " ".join(_terms(text, tool_format.markers, added_token_id))

    further = f"({piece(tool_format.separator)} call)* " if is_parallel and function is None else ""
    start = f"start: {piece(tool_format.opener)} call {further}{piece(tool_format.closer)}"
    return _written([start, *_call_rules(functions, tool_format, piece)])


def strict_call_grammar(
    tools: Sequence[Mapping[str, Any]],
    strict: Collection[str],
    is_parallel: bool,
    tool_format: ToolFormat,
    added_token_id: Callable[[str], int | None],
    text_tokens: Collection[int],
) -> str | None:
    """A grammar of answers in words that may hold calls, each of a listed function.

    tools, added_token_id: see `forced_call_grammar`.
    strict:                names of the functions whose arguments follow `parameters`; those of others are any object.
    is_parallel:           whether more than one call may be made.
    text_tokens:           added tokens that may stand among the words, such as those around reasoning.

    None where no function is strict, and for a format whose calls begin with no marker of their own: there, nothing
    tells the beginning of a call from other text before it is too late to follow a schema.
    """
    marker = next((marker for marker in tool_format.markers if tool_format.opener.startswith(marker)), None)
    functions = [tool["function"] for tool in tools]
    if marker is None or not any(function["name"] in strict for function in functions):
        return None

    def piece(text: str) -> str:
        return " ".join(_terms(text, tool_format.markers, added_token_id))

    loose = [
        function if function["name"] in strict else {"name": function["name"], "parameters": {"type": "object"}}
        for function in functions
    ]
    token = added_token_id(marker)
    markers = {added_token_id(name) for name in tool_format.markers}
    own = " | ".join(f"<[{other}]>" for other in sorted(text_tokens) if other not in markers)
    # a regular expression stands for no added token
    words = f"(TEXT? ({own}))* TEXT?" if own else "TEXT?"
    before = f"words <[{token}]>" if token is not None else f"(TEXT? ({own}))* before" if own else "before"
    opener, closer = piece(tool_format.opener.removeprefix(marker)), piece(tool_format.closer)
    ends_with_marker = any(end in tool_format.closer for end in tool_format.markers)
    further = f"({piece(tool_format.separator)} call)*" if is_parallel and not ends_with_marker else ""
    block = f"{before} {opener} call {further} {closer}"
    if ends_with_marker:
        start = f"start: ({block}){'*' if is_parallel else '?'} words"
    else:
        # what follows such a call would be read as a part of it
        start = f"start: words | {block}"
    literal = re.escape(marker).replace("/", "\\/")
    rules = [start, f"words: {words}", f"TEXT: /(?s:.+)/ & ~/(?s:.*){literal}(?s:.*)/"]
    if token is None:
        rules.append(f"before[suffix={json.dumps(marker)}]: /(?s:.*)/")
    return _written([*rules, *_call_rules(loose, tool_format, piece)])


def _call_rules(
    functions: Sequence[Mapping[str, Any]], tool_format: ToolFormat, piece: Callable[[str], str]
) -> Iterator[str]:
    """The rule of a call of any of the functions, and one for each of them."""
    yield "call: " + " | ".join(f"call_{number}" for number in range(len(functions)))
    for number, called in enumerate(functions):
        # Name and surroundings are one literal where no token parts them: fewer lexemes, and all of it is forced.
        head = piece(tool_format.before_name + called["name"] + tool_format.before_arguments)
        yield f"call_{number}: {head} %json {_schema_text(called)} {piece(tool_format.after_arguments)}"


def _written(rules: Iterable[str]) -> str:
    return "\n".join(rule.rstrip() for rule in rules) + "\n"


def _terms(text: str, markers: Sequence[str], added_token_id: Callable[[str], int | None]) -> Iterator[str]:
    """A literal text as terms of a rule, none for an empty one."""
    literal = ""
    for part in _parts(text, markers):
        token = added_token_id(part) if part in markers else None
        if token is None:
            literal += part
            continue
        if literal:
            yield json.dumps(literal)
        yield f"<[{token}]>"
        literal = ""
    if literal:
        yield json.dumps(literal)


def _parts(text: str, markers: Sequence[str]) -> list[str]:
    """The text cut at its markers, which stay parts of it."""
    if not markers:
        return [text]
    return re.split("(" + "|".join(re.escape(marker) for marker in markers) + ")", text)


def _schema_text(function: Mapping[str, Any]) -> str:
    """The JSON schema of a function's arguments, on one line; an object even where the schema does not say so."""
    parameters = function.get("parameters")
    schema = parameters if parameters is not None else _NO_ARGUMENTS
    return json.dumps({"type": "object", **schema, **_JSON_STYLE})
