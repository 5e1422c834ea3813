"""POST /v1/completions: request and answers."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from typing_extensions import TypedDict

from medusa_core.errors import UnsupportedParameter
from server.schemas.common import INT64, GenerationFields, SpeculationStats, Usage

__all__ = ["DEFAULT_MAX_TOKENS", "Completion", "CompletionChoice", "CompletionChunk", "CompletionRequest"]

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
    max_tokens: int | None = Field(None, ge=1, lt=INT64)


class CompletionChoice(TypedDict):
    """One answer; in a stream, a piece of it."""

    index: int
    text: str
    logprobs: None
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
