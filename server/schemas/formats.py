"""The fields that say what form an answer must have: OpenAI's response_format and other servers' guided decoding."""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from medusa_core.constraints import Grammar
from medusa_core.errors import InvalidParameter

__all__ = ["FormatFields", "JsonSchema", "ResponseFormat", "StructuredOutputs", "Wish"]

# A choice among more is data, not a form.
MAX_CHOICES = 4096


class JsonSchema(BaseModel):
    """A schema that the answer must fit.

    strict: refuse a schema that uses what cannot be enforced; otherwise such keywords are left out.
    """

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    name: str | None = Field(None, max_length=256)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Plain text, any JSON object, or JSON that fits a schema."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def _schema(value: object) -> object:
    """A schema as an object, or as text that spells one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("is text that spells no JSON") from None
    return value


Schema = Annotated[dict[str, Any], BeforeValidator(_schema)]
Choices = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]


class StructuredOutputs(BaseModel):
    """One of several kinds of form, as newer versions of vLLM take them."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    json_: Schema | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Wish(BaseModel):
    """A form that one field asks for: the field, and the grammar that gives it."""

    model_config = ConfigDict(frozen=True)

    param: str
    grammar: Grammar


class FormatFields(BaseModel):
    """The fields of both endpoints that are about the form of an answer; at most one of them may ask for one."""

    model_config = ConfigDict(strict=True)

    response_format: ResponseFormat | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def may_wish_form(self) -> bool:
        """Whether a field is there that may ask for a form, without a look into it."""
        return any(getattr(self, name) is not None for name in FormatFields.model_fields)

    def wished_form(self) -> Wish | None:
        """What the answer must match, None when it is free.

        May take a moment for a large schema. Raises InvalidParameter when several fields ask for a form, or one that
        cannot be written as a grammar.
        """
        wishes = [(param, make) for param, make in _makers(self).items() if make is not None]
        if len(wishes) > 1:
            named = " and ".join(repr(param) for param, _ in wishes)
            raise InvalidParameter(f"an answer has one form; {named} ask for several", wishes[1][0])
        for param, make in wishes:
            try:
                return Wish(param=param, grammar=make())
            except InvalidParameter as error:
                raise InvalidParameter(str(error), param) from error
        return None


Maker = Callable[[], Grammar]


def _makers(fields: FormatFields) -> Mapping[str, Maker | None]:
    """How each field's form becomes a grammar; None for a field that asks for none."""
    outputs = (
        fields.structured_outputs if fields.structured_outputs is not None else StructuredOutputs.model_validate({})
    )
    return {
        "response_format": _of_response_format(fields.response_format),
        "guided_json": _given(fields.guided_json, lambda schema: Grammar.json_schema(schema, is_lenient=False)),
        "guided_regex": _given(fields.guided_regex, Grammar.regex),
        "guided_choice": _given(fields.guided_choice, Grammar.choice),
        "guided_grammar": _given(fields.guided_grammar, Grammar.lark),
        "grammar": _given(fields.grammar, Grammar.lark),
        "structured_outputs.json": _given(outputs.json_, lambda schema: Grammar.json_schema(schema, is_lenient=False)),
        "structured_outputs.regex": _given(outputs.regex, Grammar.regex),
        "structured_outputs.choice": _given(outputs.choice, Grammar.choice),
        "structured_outputs.grammar": _given(outputs.grammar, Grammar.lark),
        "structured_outputs.json_object": Grammar.json_object if outputs.json_object else None,
    }


def _given(value: Any, make: Callable[[Any], Grammar]) -> Maker | None:
    return None if value is None else lambda: make(value)


def _of_response_format(wanted: ResponseFormat | None) -> Maker | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Grammar.json_object
    schema = wanted.json_schema
    if schema is None:
        raise InvalidParameter("a response_format of type json_schema needs json_schema.schema", "response_format")
    return lambda: Grammar.json_schema(schema.schema_, is_lenient=schema.strict is not True)
