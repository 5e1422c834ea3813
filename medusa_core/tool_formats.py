"""How models write tool calls, for tokenizers that ship no `response_template` of their own.

One row for each way of writing. A row says how a chat template betrays it, how transformers' response parser reads
it, and the literal pieces between which a forced call is written:

    opener  before_name NAME before_arguments {...} after_arguments  [separator, the next call]  closer

The response templates read calls only, no reasoning. A call that is no JSON does not make them raise: its value then
lacks a name or arguments. They ignore the prompt, since none of these formats lets a prompt begin a call.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["DEFAULT_TOOL_FORMAT", "TOOL_FORMATS", "ToolFormat", "tool_format_of"]


@dataclass(frozen=True)
class ToolFormat:
    """One way of writing tool calls.

    marks:             strings that all stand in the text of a chat template that teaches this format; backslashes of
                       its string literals are not counted.
    response_template: for `tokenizer.get_response_parser`; fields `content` and `tool_calls`, whose value is
                       `{"type": "function", "function": call}`. `call` is what the model wrote: an object of name and
                       arguments (or parameters), a list of those, or text that is no JSON.
    markers:           parts of the pieces below that a tokenizer may hold as one token.
    call_id_length:    letters and digits that the template insists on in the id of an earlier call; None: any id.
    """

    name: str
    marks: tuple[str, ...]
    response_template: Mapping[str, Any]
    markers: tuple[str, ...]
    opener: str
    before_name: str
    before_arguments: str
    after_arguments: str
    separator: str
    closer: str
    call_id_length: int | None


# The end of the prompt: what stands before it is none of the answer.
_AFTER_THE_PROMPT = r"\Z"
_LENIENT_JSON: dict[str, Any] = {"content": "json", "content_args": {"allow_non_json": True}}
_CONTENT: dict[str, Any] = {"content": "text"}

# Whitespace is bounded in these patterns: without a bound the parser would search a long run of it again and again.
_LLAMA_CALL = r"""(?=\{\s{0,32}"name"\s{0,32}:)"""

HERMES = ToolFormat(
    name="hermes",
    marks=("<tool_call>", '"name": ', '"arguments": '),
    response_template={
        "defaults": {"role": "assistant"},
        "start_anchor_pattern": _AFTER_THE_PROMPT,
        "fields": {
            "content": _CONTENT,
            "tool_calls": {
                "open": "<tool_call>",
                "close": "</tool_call>",
                "repeats": True,
                **_LENIENT_JSON,
                "transform": {"type": "function", "function": "{content}"},
            },
        },
    },
    markers=("<tool_call>", "</tool_call>"),
    opener="<tool_call>\n",
    before_name='{"name": "',
    before_arguments='", "arguments": ',
    after_arguments="}",
    separator="\n</tool_call>\n<tool_call>\n",
    closer="\n</tool_call>",
    call_id_length=None,
)

MISTRAL_ARGS = ToolFormat(
    name="mistral_args",
    marks=("[TOOL_CALLS]", "[ARGS]"),
    response_template={
        "defaults": {"role": "assistant"},
        "start_anchor_pattern": _AFTER_THE_PROMPT,
        "fields": {
            "content": _CONTENT,
            "tool_calls": {
                "open_pattern": r"\[TOOL_CALLS\]\s?(?P<name>[A-Za-z0-9_-]{1,64})"
                r"(?:\[CALL_ID\][A-Za-z0-9]{1,64})?\[ARGS\]",
                "close_pattern": r"(?=\[TOOL_CALLS\])",
                "repeats": True,
                **_LENIENT_JSON,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
        },
    },
    markers=("[TOOL_CALLS]", "[ARGS]"),
    opener="[TOOL_CALLS]",
    before_name="",
    before_arguments="[ARGS]",
    after_arguments="",
    separator="[TOOL_CALLS]",
    closer="",
    call_id_length=9,
)

MISTRAL_LIST = ToolFormat(
    name="mistral_list",
    marks=("[TOOL_CALLS]",),
    response_template={
        "defaults": {"role": "assistant"},
        "start_anchor_pattern": _AFTER_THE_PROMPT,
        "fields": {
            "content": _CONTENT,
            "tool_calls": {
                "open": "[TOOL_CALLS]",
                **_LENIENT_JSON,
                "transform": {"type": "function", "function": "{content}"},
            },
        },
    },
    markers=("[TOOL_CALLS]",),
    opener="[TOOL_CALLS][",
    before_name='{"name": "',
    before_arguments='", "arguments": ',
    after_arguments="}",
    separator=", ",
    closer="]",
    call_id_length=9,
)

LLAMA_JSON = ToolFormat(
    name="llama_json",
    marks=("<|start_header_id|>", '{"name": ', '"parameters": '),
    response_template={
        "defaults": {"role": "assistant"},
        "start_anchor_pattern": _AFTER_THE_PROMPT,
        "fields": {
            "content": _CONTENT,
            "tool_calls": {
                "open_pattern": r"(?:<\|python_tag\|>)?" + _LLAMA_CALL,
                # Inside a call a brace follows a brace only after a comma, and a quote in a string is escaped. One
                # character at least is taken: an end of no width would be found again at the start of the next call.
                "close_pattern": r"(?<=\})[\s;]{1,32}(?:<\|python_tag\|>)?" + _LLAMA_CALL,
                "repeats": True,
                **_LENIENT_JSON,
                "transform": {"type": "function", "function": "{content}"},
            },
        },
    },
    markers=(),
    opener="",
    before_name='{"name": "',
    before_arguments='", "parameters": ',
    after_arguments="}",
    separator="; ",
    closer="",
    call_id_length=None,
)

# The first row whose marks are all there counts: a template of an earlier row may hold the marks of a later one.
TOOL_FORMATS: tuple[ToolFormat, ...] = (HERMES, MISTRAL_ARGS, MISTRAL_LIST, LLAMA_JSON)

# For calls forced on a model whose template teaches none.
DEFAULT_TOOL_FORMAT = HERMES


def tool_format_of(chat_template: str) -> ToolFormat | None:
    """The format that a chat template teaches, None when it teaches no row of the table.

    A template that writes calls otherwise between the same markers (Qwen3-Coder's XML, GLM's keys) is no row.
    """
    text = chat_template.replace("\\", "")
    return next((row for row in TOOL_FORMATS if all(mark in text for mark in row.marks)), None)
