import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from medusa_core.tool_formats import (
    DEFAULT_TOOL_FORMAT,
    HERMES,
    LLAMA_JSON,
    MISTRAL_ARGS,
    MISTRAL_LIST,
    TOOL_FORMATS,
    ToolFormat,
    tool_format_of,
)

every_format = pytest.mark.parametrize("tool_format", TOOL_FORMATS, ids=lambda row: row.name)

# The lines of published templates that tell how a call is written, with their neighbours that could mislead.
QWEN = (
    """{{- "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>" }}"""
    """{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}"""
    """{{- "\\n</tools>\\n\\nFor each function call, return a json object:\\n<tool_call>\\n"""
    """{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}"""
)
NOUS = (
    """{{- '{"type": "function", "function": {"name": "' + tool.name + '", "parameters": ' + tool.parameters }}"""
    """{{- '<tool_call>\\n{"name": <function-name>, "arguments": <args-dict>}\\n</tool_call><|im_end|>' }}"""
)
LLAMA = (
    """{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}"""
    """{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and value}.' }}"""
    """{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}"""
)
MISTRAL_OLD = (
    """{{- '{"type": "function", "function": {' }}{{- '"' + key + '": ' + val|tojson }}{{- "[/AVAILABLE_TOOLS]" }}"""
    """{{- "[TOOL_CALLS] [" }}{%- set out = tool_call.function|tojson %}{{- out[:-1] }}"""
)
MISTRAL_NEW = """{{- '[TOOL_CALLS]' + tool_call.function.name + '[ARGS]' + tool_call.function.arguments|tojson }}"""


@pytest.mark.parametrize(
    ("template", "expected"),
    [(QWEN, HERMES), (NOUS, HERMES), (LLAMA, LLAMA_JSON), (MISTRAL_OLD, MISTRAL_LIST), (MISTRAL_NEW, MISTRAL_ARGS)],
)
def test_a_chat_template_betrays_its_format(template: str, expected: ToolFormat) -> None:
    assert tool_format_of(template) is expected


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}{% endfor %}",
        # Qwen3-Coder
        """{{- "<tool_call>\\n<function=example_function_name>\\n<parameter=a>\\nvalue" }}{{- tool_call.name }}""",
        # GLM-4.5
        """<tool_call>{function-name}\\n<arg_key>{arg-key-1}</arg_key>\\n<arg_value>{arg-value-1}</arg_value>""",
        # Command-R lists its tools in JSON, too
        """{{- '{"name": "' + tool.name + '", "parameters": ' + tool.parameters }}{{- '"tool_name": ' }}""",
    ],
)
def test_a_template_that_writes_calls_in_another_way_is_not_taken_for_a_row(template: str) -> None:
    assert tool_format_of(template) is None


def test_the_default_is_a_row() -> None:
    assert DEFAULT_TOOL_FORMAT in TOOL_FORMATS


def parsed(tool_format: ToolFormat, text: str, prompt: str = "") -> dict[str, Any]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    parser = tokenizer.get_response_parser(dict(tool_format.response_template), prefix=prompt)
    for character in text:
        parser.feed(character)
    message, _ = parser.finalize()
    return dict(message)


def call_text(tool_format: ToolFormat, name: str, arguments: str) -> str:
    before, between, after = tool_format.before_name, tool_format.before_arguments, tool_format.after_arguments
    return f"{before}{name}{between}{arguments}{after}"


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    calls: list[tuple[str, Any]] = []
    regions = message.get("tool_calls", [])
    for region in regions if isinstance(regions, list) else [regions]:
        written = region["function"]
        for call in written if isinstance(written, list) else [written]:
            calls.append((call["name"], call.get("arguments", call.get("parameters"))))
    return calls


# One nested object begins with a name, as a call does; the string holds what could be taken for one.
ARGUMENTS = {"people": [{"name": "x"}, {"name": "y"}], "text": '} {"name": "z"}', "city": "K\u00f6ln"}


@every_format
def test_a_call_written_with_a_rows_pieces_is_read_by_its_response_template(tool_format: ToolFormat) -> None:
    first = call_text(tool_format, "find-it", json.dumps(ARGUMENTS, ensure_ascii=False))
    text = tool_format.opener + first + tool_format.separator + call_text(tool_format, "b_2", "{}") + tool_format.closer

    assert calls_of(parsed(tool_format, text)) == [("find-it", ARGUMENTS), ("b_2", {})]


@every_format
def test_text_before_a_call_is_content(tool_format: ToolFormat) -> None:
    text = "Let me see. " + tool_format.opener + call_text(tool_format, "f", "{}") + tool_format.closer
    message = parsed(tool_format, text)

    assert (message["content"], calls_of(message)) == ("Let me see.", [("f", {})])


@every_format
def test_an_answer_without_a_call_is_content(tool_format: ToolFormat) -> None:
    text = 'A {brace}, a {"key": "name"}, a [list] and a <tag>.'

    assert parsed(tool_format, text)["content"] == text


@every_format
def test_calls_in_the_prompt_are_none_of_the_answer(tool_format: ToolFormat) -> None:
    prompt = tool_format.opener + call_text(tool_format, "f", "{}") + tool_format.closer

    assert parsed(tool_format, "Done.", prompt=prompt) == {"role": "assistant", "content": "Done."}


@every_format
def test_a_call_that_is_no_json_does_not_stop_the_parser(tool_format: ToolFormat) -> None:
    broken = call_text(tool_format, "f", '{"a": ')

    message = parsed(tool_format, tool_format.opener + broken + tool_format.closer)

    assert message["tool_calls"]


@pytest.mark.parametrize(
    "text",
    [
        '<|python_tag|>{"name": "f", "parameters": {"a": 1}}',
        '{ "name" : "f",\n "parameters": {"a": 1} }',
        '{\n  "name": "f",\n  "parameters": {"a": 1}\n}',
    ],
)
def test_llamas_calls_may_be_tagged_and_laid_out_freely(text: str) -> None:
    assert calls_of(parsed(LLAMA_JSON, text)) == [("f", {"a": 1})]


@pytest.mark.parametrize("separator", ["; ", ";", "\n", "\n\n", ";<|python_tag|>", "; \n"])
def test_llamas_calls_are_parted_by_semicolons_or_lines(separator: str) -> None:
    text = '{"name": "f", "parameters": {}}' + separator + '{"name": "g", "parameters": {}}'

    assert calls_of(parsed(LLAMA_JSON, text)) == [("f", {}), ("g", {})]


def test_braces_in_a_row_do_not_hold_the_parser_up() -> None:
    # an end of no width would be found for ever between the two braces
    assert parsed(LLAMA_JSON, '}{"name": "f", "parameters": {}}')["content"] == "}"


def test_llamas_code_is_no_call() -> None:
    assert parsed(LLAMA_JSON, "<|python_tag|>print(1)")["content"] == "<|python_tag|>print(1)"


@pytest.mark.parametrize("text", ["[TOOL_CALLS] f[ARGS]{}", "[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{}"])
def test_mistrals_calls_may_carry_a_space_or_an_id(text: str) -> None:
    assert calls_of(parsed(MISTRAL_ARGS, text)) == [("f", {})]


def test_mistrals_list_may_carry_a_space_and_ids() -> None:
    text = '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "a1b2c3d4e"}]'

    assert calls_of(parsed(MISTRAL_LIST, text)) == [("f", {})]
