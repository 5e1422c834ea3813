from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from medusa_core.errors import InvalidParameter, UnsupportedParameter
from server.schemas.tools import MAX_SCHEMA_DEPTH, MAX_TOOLS, Function, ToolCall, ToolCallDelta, ToolFields, ToolRequest

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def function(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"name": name, **more}


def tool(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": function(name, **more)}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def asked(**fields: Any) -> ToolRequest | None:
    return ToolFields.model_validate(fields).tool_request


def refused_place(**fields: Any) -> tuple[int | str, ...]:
    with pytest.raises(ValidationError) as caught:
        ToolFields.model_validate(fields)
    return caught.value.errors()[0]["loc"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": None, "tool_choice": None, "parallel_tool_calls": None, "functions": None, "function_call": None},
        {"tools": [], "tool_choice": "none"},
        {"functions": [], "function_call": "auto"},
        {"parallel_tool_calls": False},
    ],
)
def test_without_functions_nothing_is_asked_for(fields: dict[str, Any]) -> None:
    assert asked(**fields) is None


def test_a_template_gets_names_descriptions_and_parameters_and_nothing_else() -> None:
    offered = [tool(description="Of a city.", parameters=PARAMETERS, strict=True, extra=1)]

    assert asked(tools=offered) == ToolRequest(
        ({"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": PARAMETERS}},),
        "auto",
        None,
        True,
        frozenset({"weather"}),
    )


def test_a_function_without_parameters_takes_none() -> None:
    written = Function.model_validate(function(parameters=None)).for_template()["function"]

    assert written == {
        "name": "weather",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    }


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None)),
        ("auto", ("auto", None)),
        ("none", ("none", None)),
        ("required", ("required", None)),
        (named("time"), ("required", "time")),
    ],
)
def test_a_choice_is_a_word_or_a_function(choice: object, expected: tuple[str, str | None]) -> None:
    request = asked(tools=[tool("weather"), tool("time")], tool_choice=choice)

    assert request is not None
    assert (request.choice, request.function) == expected


@pytest.mark.parametrize(("value", "is_parallel"), [(None, True), (True, True), (False, False)])
def test_calls_are_parallel_unless_refused(value: bool | None, is_parallel: bool) -> None:
    request = asked(tools=[tool()], parallel_tool_calls=value)

    assert request is not None
    assert request.is_parallel is is_parallel


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, None),
        ("none", "none"),
        ("auto", "auto"),
        ({"name": "weather"}, named("weather")),
    ],
)
def test_the_older_fields_mean_what_the_newer_ones_mean_with_one_call(old: object, new: object) -> None:
    mapped = asked(functions=[function(parameters=PARAMETERS)], function_call=old)

    assert mapped == asked(tools=[tool(parameters=PARAMETERS)], tool_choice=new, parallel_tool_calls=False)


@pytest.mark.parametrize(
    "name", ["", "a b", "a.b", "n\u00e4me", "a" * 65, "a\n", "<tool_call>", '"', 1, None, ["weather"]]
)
def test_a_name_of_other_letters_is_refused_where_it_stands(name: object) -> None:
    assert refused_place(tools=[tool("time"), tool(name)]) == ("tools", 1, "function", "name")  # type: ignore[arg-type]
    assert refused_place(functions=[function(name)]) == ("functions", 0, "name")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a", "A-b_9", "a" * 64])
def test_a_name_of_letters_digits_underscores_and_dashes_is_taken(name: str) -> None:
    request = asked(tools=[tool(name)])

    assert request is not None
    assert request.tools[0]["function"]["name"] == name


@pytest.mark.parametrize("kind", ["custom", "web_search", "code_interpreter"])
def test_a_tool_of_another_type_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedParameter, match=kind) as caught:
        asked(tools=[{"type": kind, kind: {}}])

    assert caught.value.param == "tools"


@pytest.mark.parametrize("choice", [{"type": "allowed_tools", "allowed_tools": {}}, {"type": "custom", "custom": {}}])
def test_a_choice_of_another_type_is_refused_by_name(choice: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter, match=choice["type"]) as caught:
        asked(tools=[tool()], tool_choice=choice)

    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"tools": {}}, ("tools",)),
        ({"tools": "weather"}, ("tools",)),
        ({"tools": [1]}, ("tools", 0)),
        ({"tools": [{"function": function()}]}, ("tools", 0, "type")),
        ({"tools": [{"type": 1, "function": function()}]}, ("tools", 0, "type")),
        ({"tools": [{"type": "function"}]}, ("tools", 0, "function")),
        ({"tools": [tool(description=1)]}, ("tools", 0, "function", "description")),
        ({"tools": [tool(strict="yes")]}, ("tools", 0, "function", "strict")),
        ({"tools": [tool(parameters=[])]}, ("tools", 0, "function", "parameters")),
        ({"tools": [tool(parameters={"type": "string"})]}, ("tools", 0, "function", "parameters")),
        ({"tools": [tool(parameters={"type": ["object", "null"]})]}, ("tools", 0, "function", "parameters")),
        ({"functions": [tool()]}, ("functions", 0, "name")),
        ({"parallel_tool_calls": "yes"}, ("parallel_tool_calls",)),
        ({"tool_choice": "any"}, ("tool_choice",)),
        ({"tool_choice": 1}, ("tool_choice",)),
        ({"tool_choice": []}, ("tool_choice",)),
        ({"tool_choice": {"function": {"name": "weather"}}}, ("tool_choice",)),
        ({"tool_choice": {"type": "function", "name": "weather"}}, ("tool_choice",)),
        ({"tool_choice": {"type": "function", "function": {"name": 1}}}, ("tool_choice",)),
        ({"function_call": "required"}, ("function_call",)),
        ({"function_call": {"name": None}}, ("function_call",)),
    ],
)
def test_a_field_of_another_shape_is_refused_where_it_is_wrong(fields: dict[str, Any], place: tuple[Any, ...]) -> None:
    assert refused_place(**fields) == place


@pytest.mark.parametrize("field", ["tools", "functions"])
def test_as_many_functions_as_openai_takes_are_taken_and_no_more(field: str) -> None:
    offer = tool if field == "tools" else function
    many = [offer(f"f{number}") for number in range(MAX_TOOLS + 1)]

    request = asked(**{field: many[:-1]})
    assert request is not None and len(request.tools) == MAX_TOOLS
    assert refused_place(**{field: many}) == (field,)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool(), tool("time"), tool()]}, "tools"),
        ({"functions": [function(), function()]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": named("weather")}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": named("time")}, "tool_choice"),
        ({"function_call": {"name": "weather"}}, "function_call"),
        ({"functions": [function()], "function_call": {"name": "time"}}, "function_call"),
        ({"tools": [tool()], "functions": [function()]}, "functions"),
        ({"tools": [tool()], "tool_choice": "auto", "function_call": "auto"}, "function_call"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        ToolFields.model_validate(fields)

    assert caught.value.param == param


def test_a_schema_of_moderate_depth_is_taken_and_a_deeper_one_refused() -> None:
    def nested(levels: int) -> dict[str, Any]:
        schema: Any = True
        for level in range(levels):
            schema = [schema] if level % 2 else {"items": schema}
        return schema if isinstance(schema, dict) else {"anyOf": schema}

    assert asked(tools=[tool(parameters=nested(MAX_SCHEMA_DEPTH - 1))]) is not None
    assert refused_place(tools=[tool(parameters=nested(5_000))]) == ("tools", 0, "function", "parameters")


def test_the_interface_can_be_described() -> None:
    described = ToolFields.model_json_schema()["properties"]

    assert {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"} <= described.keys()


def test_the_first_piece_of_a_call_and_the_later_ones_have_openais_shape() -> None:
    piece, whole = TypeAdapter(ToolCallDelta), TypeAdapter(ToolCall)

    piece.validate_python({"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}})
    piece.validate_python({"index": 0, "function": {"arguments": "{"}})
    whole.validate_python({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}})
    with pytest.raises(ValidationError):
        piece.validate_python({"id": "c", "function": {"arguments": "{"}})


def test_strict_functions_are_known_by_name() -> None:
    offered = [
        {"type": "function", "function": {"name": "a", "strict": True}},
        {"type": "function", "function": {"name": "b", "strict": False}},
        {"type": "function", "function": {"name": "c", "strict": None}},
    ]
    found = asked(tools=offered)

    assert found is not None
    assert found.strict == {"a"}


@pytest.mark.parametrize(("choice", "offers"), [("tool_choice", "tools"), ("function_call", "functions")])
def test_a_call_of_nothing_names_the_field_that_should_offer_it(choice: str, offers: str) -> None:
    named = {"type": "function", "function": {"name": "f"}} if choice == "tool_choice" else {"name": "f"}
    with pytest.raises(InvalidParameter, match=f"'{offers}' offers no function"):
        asked(**{choice: named})
