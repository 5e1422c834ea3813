"""Tools in a chat: the functions on offer, the choice among them, and calls in the answer."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from medusa_core.errors import InvalidParameter, UnsupportedParameter
from server.schemas.common import Flag

__all__ = [
    "MAX_TOOLS",
    "Function",
    "FunctionCall",
    "FunctionDelta",
    "FunctionName",
    "NamedTool",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolFields",
    "ToolRequest",
]

# OpenAI's limit.
MAX_TOOLS = 128
# Deeper schemas overflow the templates and encoders that recurse into them.
MAX_SCHEMA_DEPTH = 64

# What a function takes that names no parameters; templates that list parameters fail where there is nothing to list.
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

CHOICES = ("none", "auto", "required")
OLD_CHOICES = ("none", "auto")


def _schema_of_an_object(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    if schema is None:
        return None
    if schema.get("type", "object") != "object":
        raise ValueError("must be a schema of type 'object'; leave it out for a function without parameters")
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner = [part for whole in level for part in (whole.values() if isinstance(whole, dict) else whole)]
        level = [part for part in inner if isinstance(part, dict | list)]
        if not level:
            return schema
    raise ValueError(f"is nested deeper than {MAX_SCHEMA_DEPTH} levels; flatten it")


def _only_functions(kind: object) -> object:
    if isinstance(kind, str) and kind != "function":
        raise UnsupportedParameter("tools", "offer functions only", f"a tool of type {kind[:64]!r}")
    return kind


def _null_is_empty(value: object) -> object:
    return [] if value is None else value


def _choice(value: object) -> object:
    """Lets pass what the union behind it takes: its own complaint would be one for each member."""
    if value is None or isinstance(value, NamedTool) or (isinstance(value, str) and value in CHOICES):
        return value
    kind, named = (value.get("type"), value.get("function")) if isinstance(value, dict) else (None, None)
    if isinstance(kind, str) and kind != "function":
        raise UnsupportedParameter(
            "tool_choice", "offer only those tools that may be called", f"a choice of type {kind[:64]!r}"
        )
    if kind is None or not _is_named(named):
        raise ValueError("must be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': ...}}")
    return value


def _old_choice(value: object) -> object:
    if value is None or isinstance(value, FunctionName) or (isinstance(value, str) and value in OLD_CHOICES):
        return value
    if not _is_named(value):
        raise ValueError("must be 'none', 'auto' or {'name': ...}")
    return value


def _is_named(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


class Function(BaseModel):
    """A function that the model may call.

    parameters: JSON schema of the arguments, an object; left out, there are none.
    strict:     a call of the model's own accord follows the schema, too, as a forced one does in any case.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, AfterValidator(_schema_of_an_object)] = None
    strict: Flag = False

    def for_template(self) -> dict[str, Any]:
        """The function as chat templates expect a tool."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters if self.parameters is not None else NO_PARAMETERS
        return {"type": "function", "function": function}


class Tool(BaseModel):
    """Something the model may use; functions are all there is."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Annotated[Literal["function"], BeforeValidator(_only_functions)]
    function: Function


class FunctionName(BaseModel):
    """A function by its name."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str


class NamedTool(BaseModel):
    """The one tool that must be called."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function"]
    function: FunctionName


@dataclass(frozen=True)
class ToolRequest:
    """The functions that a model is offered, at least one, and what it may do with them.

    tools:       as chat templates expect them: `{"type": "function", "function": {"name", "description"?,
                 "parameters"}}`, names all different.
    choice:      none: call nothing; auto: call or answer; required: call.
    function:    the one function that must be called; None: whichever fits.
    is_parallel: the answer may hold several calls.
    strict:      names of the functions whose parameters every call follows.
    """

    tools: tuple[dict[str, Any], ...]
    choice: Literal["none", "auto", "required"]
    function: str | None
    is_parallel: bool
    strict: frozenset[str]

    @property
    def offered(self) -> tuple[dict[str, Any], ...]:
        """What the model is told of: nothing when it may call nothing."""
        return self.tools if self.choice != "none" else ()


class ToolFields(BaseModel):
    """The fields of a chat that are about tools; `functions` and `function_call` are older names of the first two."""

    model_config = ConfigDict(strict=True)

    tools: Annotated[list[Tool], BeforeValidator(_null_is_empty, json_schema_input_type=list[Tool] | None)] = Field(
        default_factory=list, max_length=MAX_TOOLS, fail_fast=True
    )
    tool_choice: Annotated[Literal["none", "auto", "required"] | NamedTool | None, BeforeValidator(_choice)] = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[
        list[Function], BeforeValidator(_null_is_empty, json_schema_input_type=list[Function] | None)
    ] = Field(default_factory=list, max_length=MAX_TOOLS, fail_fast=True)
    function_call: Annotated[Literal["none", "auto"] | FunctionName | None, BeforeValidator(_old_choice)] = None

    @model_validator(mode="after")
    def _calls_are_of_functions_on_offer(self) -> Self:
        for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
            if getattr(self, old) and getattr(self, new):
                raise InvalidParameter(f"{old!r} is the older name of {new!r}; send only one of them", old)
        offered = "functions" if self.functions else "tools"
        names = [function.name for function in self._offered]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidParameter(f"{offered!r} holds two functions named {twice!r}; rename one of them", offered)
        choice, function = self._chosen
        chosen_by = "tool_choice" if self.tool_choice is not None else "function_call"
        if choice == "required" and not names:
            wanted = "tools" if chosen_by == "tool_choice" else "functions"
            raise InvalidParameter(f"{chosen_by!r} asks for a call, and {wanted!r} offers no function", chosen_by)
        if function is not None and function not in names:
            raise InvalidParameter(
                f"{chosen_by!r} names {function[:64]!r}, which {offered!r} does not offer", chosen_by
            )
        return self

    @property
    def tool_request(self) -> ToolRequest | None:
        """What is asked for; None when no function is offered."""
        if not self._offered:
            return None
        choice, function = self._chosen
        # the older fields knew one call in an answer only
        is_parallel = not self.functions and self.parallel_tool_calls is not False
        tools = tuple(offer.for_template() for offer in self._offered)
        strict = frozenset(offer.name for offer in self._offered if offer.strict)
        return ToolRequest(tools, choice, function, is_parallel, strict)

    @property
    def _offered(self) -> list[Function]:
        return self.functions if self.functions else [tool.function for tool in self.tools]

    @property
    def _chosen(self) -> tuple[Literal["none", "auto", "required"], str | None]:
        """What may be called, and the function when it is a certain one."""
        choice = self.tool_choice if self.tool_choice is not None else self.function_call
        if isinstance(choice, NamedTool):
            return "required", choice.function.name
        if isinstance(choice, FunctionName):
            return "required", choice.name
        return choice if choice is not None else "auto", None


class FunctionCall(TypedDict):
    """A function and its arguments, which are JSON in a string."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """One call in an answer."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionDelta(TypedDict):
    """A piece of a call: the name once, the arguments in pieces."""

    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """A piece of a call; id and type come once, in its first piece: clients concatenate what comes twice."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta
