"""POST /v1/completions: request and answers."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from typing_extensions import TypedDict

from medusa_core.errors import InvalidParameter, UnsupportedParameter
from server.schemas.common import INT64, MAX_TOP_LOGPROBS, Flag, GenerationFields, SpeculationStats, Usage

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionLogprobs",
    "CompletionRequest",
]

DEFAULT_MAX_TOKENS = 16


def _is_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)


def _prompt(value: object) -> object:
    """A string or a list of token ids; a list of one of either is taken for its only member."""
    message = "must be a string or a list of token ids"
    if isinstance(value, list) and len(value) > 1 and all(isinstance(item, str | list) for item in value):
        raise UnsupportedParameter("prompt", "one prompt per request is built so far; send the others on their own")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not _is_ids(value):
        raise ValueError(message)
    if not value:
        raise ValueError("is empty; send some text or at least one token id")
    return value


def _false_is_none(value: object) -> object:
    """The other endpoint's word for no log-probabilities."""
    return None if value is False else value


PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1},
    ]
}


class CompletionRequest(GenerationFields):
    """Continue a text."""

    prompt: Annotated[str | list[int], BeforeValidator(_prompt), WithJsonSchema(PROMPT_SCHEMA)]
    max_tokens: int | None = Field(None, ge=0, lt=INT64)
    logprobs: Annotated[int | None, BeforeValidator(_false_is_none)] = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Flag = False

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise InvalidParameter("max_tokens is 0, which makes sense with echo only; ask for 1 or more", "max_tokens")
        return self

    @property
    def top_logprobs_wanted(self) -> int | None:
        """Alternatives to report with each token; None reports no log-probabilities."""
        return self.logprobs


class CompletionLogprobs(TypedDict):
    """Log-probabilities of a text's tokens, in lists of equal length; null where a token follows nothing."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One answer; in a stream, a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(TypedDict):
    """A whole answer."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[CompletionChoice]
    usage: Usage
    speculation: SpeculationStats


class _ChunkBase(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[CompletionChoice]


class CompletionChunk(_ChunkBase, total=False):
    """One event of a stream."""

    usage: Usage | None
    speculation: SpeculationStats
