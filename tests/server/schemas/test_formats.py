from typing import Any

import pytest
from pydantic import ValidationError

from medusa_core.errors import InvalidParameter
from server.schemas.formats import FormatFields, Wish

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def wish(**fields: Any) -> Wish | None:
    return FormatFields.model_validate(fields).wished_form()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"guided_json": None, "structured_outputs": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False}},
    ],
    ids=str,
)
def test_an_answer_is_free_unless_a_form_is_asked_for(fields: dict[str, Any]) -> None:
    assert wish(**fields) is None


@pytest.mark.parametrize(
    ("fields", "param", "held"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format", '"object"'),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            "response_format",
            '"integer"',
        ),
        ({"guided_json": SCHEMA}, "guided_json", '"integer"'),
        ({"guided_json": '{"enum": [17]}'}, "guided_json", "17"),
        ({"guided_regex": "[a-f]{3}"}, "guided_regex", "[a-f]{3}"),
        ({"guided_choice": ["yes", 'n"o']}, "guided_choice", "yes|n"),
        ({"guided_grammar": 'start: "x"'}, "guided_grammar", '"x"'),
        ({"grammar": 'root ::= "x"'}, "grammar", 'start: "x"'),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json", '"integer"'),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex", "a+"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice", "/a/"),
        ({"structured_outputs": {"grammar": 'start: "x"'}}, "structured_outputs.grammar", '"x"'),
        ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object", '"object"'),
    ],
    ids=str,
)
def test_each_field_asks_for_its_form(fields: dict[str, Any], param: str, held: str) -> None:
    found = wish(**fields)

    assert found is not None
    assert found.param == param
    assert held in found.grammar.text


@pytest.mark.parametrize(("strict", "is_lenient"), [(True, False), (False, True), (None, True)])
def test_only_a_strict_schema_insists_on_every_keyword(strict: bool | None, is_lenient: bool) -> None:
    found = wish(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": strict}})

    assert found is not None
    assert f'"lenient":{str(is_lenient).lower()}' in found.grammar.text


def test_several_forms_are_refused_by_name() -> None:
    with pytest.raises(InvalidParameter, match="'response_format' and 'guided_regex' ask for several") as refused:
        wish(response_format={"type": "json_object"}, guided_regex="a")

    assert refused.value.param == "guided_regex"


def test_a_schema_format_without_a_schema_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"needs json_schema\.schema"):
        wish(response_format={"type": "json_schema"})


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "xml"}},
        {"response_format": "json"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
        {"guided_json": "{"},
        {"guided_json": "[1]"},
        {"guided_json": 7},
        {"guided_choice": []},
        {"guided_choice": [1]},
        {"guided_regex": 5},
        {"structured_outputs": {"xml": 1}},
    ],
    ids=str,
)
def test_what_is_no_form_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        wish(**fields)


def test_a_grammar_in_no_known_notation_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidParameter, match="cannot be read") as refused:
        wish(grammar='root ::= ("a"')

    assert refused.value.param == "grammar"
