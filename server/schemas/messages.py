"""The turns of a conversation as clients send them, and as chat templates expect them."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from medusa_core.errors import InvalidParameter, UnsupportedParameter
from server.schemas.content import PARTS_SCHEMA, joined_text

__all__ = [
    "TEMPLATE_ARGUMENTS",
    "CalledFunction",
    "Message",
    "PastCall",
    "TemplateArguments",
    "check_ending",
]

CONTENT_SCHEMA = {"anyOf": [*PARTS_SCHEMA, {"type": "null"}]}
ARGUMENTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "object"}]}

# What a request may tell the chat template; a template that does not know a name passes it over.
TEMPLATE_ARGUMENTS = (
    "date_string",
    "enable_thinking",
    "preserve_thinking",
    "reasoning_effort",
    "thinking",
    "thinking_budget",
)
TEMPLATE_ARGUMENTS_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "properties": {name: {"type": ["string", "number", "boolean", "null"]} for name in TEMPLATE_ARGUMENTS},
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}

# What a template is told a role is: the words that most of them know.
TEMPLATE_ROLES = {"developer": "system", "function": "tool"}
# Who may say nothing: a turn that is a call.
SILENT_ROLES = ("assistant", "function")


def _content(value: object) -> object:
    return joined_text(value, "messages")


def _arguments(value: object) -> object:
    """JSON text, as OpenAI has it, or the object that other clients send in its place."""
    if not isinstance(value, str | dict):
        raise ValueError("must be a string of JSON")
    return value


def _call_kind(value: object) -> object:
    if isinstance(value, str) and value != "function":
        raise UnsupportedParameter("messages", "only functions are called", f"a tool call of type {value[:64]!r}")
    return value


def _template_arguments(value: object) -> object:
    """Numbers, texts and flags under names that templates are known to read; null is the template's own default."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("must be an object of names and values")
    for name, argument in value.items():
        param = f"chat_template_kwargs.{name[:64]}"
        if name not in TEMPLATE_ARGUMENTS:
            raise UnsupportedParameter(param, f"known are {', '.join(TEMPLATE_ARGUMENTS)}")
        if argument is not None and not isinstance(argument, str | int | float):
            raise InvalidParameter(f"{name} must be a text, a number, true, false or null", param)
        if isinstance(argument, float) and not math.isfinite(argument):
            raise InvalidParameter(f"{name} must be a finite number", param)
    return {name: argument for name, argument in value.items() if argument is not None}


TemplateArguments = Annotated[
    dict[str, str | int | float | bool], BeforeValidator(_template_arguments), WithJsonSchema(TEMPLATE_ARGUMENTS_SCHEMA)
]


class CalledFunction(BaseModel):
    """A function that the assistant called, and the arguments as JSON text."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str = Field(min_length=1)
    arguments: Annotated[Any, BeforeValidator(_arguments), WithJsonSchema(ARGUMENTS_SCHEMA)]

    def for_template(self) -> dict[str, Any]:
        """As templates expect it."""
        return {"name": self.name, "arguments": self.arguments}


class PastCall(BaseModel):
    """One call of an assistant's turn."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str | None = None
    type: Annotated[Literal["function"], BeforeValidator(_call_kind)] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """As templates expect it."""
        identity = {"id": self.id} if self.id is not None else {}
        return {**identity, "type": self.type, "function": self.function.for_template()}


class Message(BaseModel):
    """One turn of a conversation; keys that no template knows are ignored.

    function_call: the older word for one tool call.
    reasoning_content: what the assistant thought before it answered; some templates repeat it.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | None, BeforeValidator(_content), WithJsonSchema(CONTENT_SCHEMA)] = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[PastCall] | None = Field(None, fail_fast=True)
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.role not in SILENT_ROLES:
            raise ValueError(f"the content of a {self.role} message is missing")
        return self

    @property
    def is_call(self) -> bool:
        """Whether the turn calls a function."""
        return bool(self.tool_calls) or self.function_call is not None

    def for_template(self) -> dict[str, Any]:
        """The message as templates expect it: absent keys left out, content always text."""
        calls = [call.for_template() for call in self.tool_calls or []]
        if self.function_call is not None:
            calls.append({"type": "function", "function": self.function_call.for_template()})
        content = self.content if self.content is not None else self.refusal
        optional = {
            "name": self.name,
            "reasoning_content": self.reasoning_content,
            "tool_calls": calls if calls else None,
            "tool_call_id": self.tool_call_id,
        }
        return {
            "role": TEMPLATE_ROLES.get(self.role, self.role),
            "content": content if content is not None else "",
            **{name: value for name, value in optional.items() if value is not None},
        }


def check_ending(messages: Sequence[Message], starts_turn: bool | None, is_continued: bool) -> None:
    """Whether the prompt can end as asked: with the start of a new turn, or with the last message left open.

    starts_turn: None when the request does not say.

    Raises InvalidParameter for both at once, and for a last message that no answer can go on with.
    """
    if not is_continued:
        return
    if starts_turn:
        raise InvalidParameter(
            "continue_final_message excludes add_generation_prompt: true; leave one out", "add_generation_prompt"
        )
    if messages[-1].role != "assistant" or messages[-1].is_call:
        raise InvalidParameter(
            "the last message is no text of the assistant, so no answer goes on with it", "continue_final_message"
        )
