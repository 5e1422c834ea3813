"""POST /v1/completions: request and answers."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from typing_extensions import TypedDict

from medusa_core.errors import InvalidParameter
from server.schemas.common import INT64, MAX_ANSWERS, MAX_TOP_LOGPROBS, Flag, GenerationFields
from server.schemas.usage import SpeculationStats, StepRecord, Usage

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
    """A string, a list of token ids, or a list of several of one kind; always a list of prompts afterwards."""
    if isinstance(value, str) or (isinstance(value, list) and value and _is_ids(value)):
        value = [value]
    if not isinstance(value, list):
        raise ValueError("must be a string, a list of token ids, or a list of several of either")
    if not value:
        raise ValueError("is empty; send some text or at least one token id")
    if len(value) > MAX_ANSWERS:
        raise ValueError(f"holds {len(value)} prompts, at most {MAX_ANSWERS} are taken")
    if all(isinstance(item, str) for item in value):
        return value
    if not all(isinstance(item, list) and _is_ids(item) for item in value):
        raise ValueError("holds something that is neither a string nor a list of token ids, or both kinds")
    if not all(value):
        raise ValueError("holds a prompt without any token id")
    return value


def _false_is_none(value: object) -> object:
    """The other endpoint's word for no log-probabilities."""
    return None if value is False else value


def _nothing_is_none(value: object) -> object:
    """An empty suffix asks for a plain continuation."""
    return None if value == "" else value


PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_ANSWERS},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            "minItems": 1,
            "maxItems": MAX_ANSWERS,
        },
    ]
}


LOGPROBS_SCHEMA = {
    "anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_TOP_LOGPROBS}, {"const": False}, {"type": "null"}]
}

EXAMPLE: dict[str, Any] = {"model": "demo", "prompt": "def read_text(path):\n", "max_tokens": 32}


class CompletionRequest(GenerationFields):
    """Continue a text."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    prompt: Annotated[list[str] | list[list[int]], BeforeValidator(_prompt), WithJsonSchema(PROMPT_SCHEMA)]
    max_tokens: int | None = Field(None, ge=0, lt=INT64)
    logprobs: Annotated[int | None, BeforeValidator(_false_is_none), WithJsonSchema(LOGPROBS_SCHEMA)] = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS
    )
    echo: Flag = False
    best_of: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    suffix: Annotated[str | None, BeforeValidator(_nothing_is_none)] = None

    @model_validator(mode="after")
    def _answers_are_bounded(self) -> Self:
        if self.best_of is not None and self.best_of < self.answers_wanted:
            raise InvalidParameter(f"best_of is {self.best_of}, n is {self.answers_wanted}; ask for more", "best_of")
        if self.tries > self.answers_wanted and self.stream:
            raise InvalidParameter("the best of several answers cannot be streamed; leave best_of out", "best_of")
        if self.tries * len(self.prompt) > MAX_ANSWERS:
            total = f"{len(self.prompt)} prompts with {self.tries} answers each"
            raise InvalidParameter(f"{total} are more than {MAX_ANSWERS}; send them in parts", "prompt")
        return self

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise InvalidParameter("max_tokens is 0, which makes sense with echo only; ask for 1 or more", "max_tokens")
        return self

    @model_validator(mode="after")
    def _a_suffix_follows_text(self) -> Self:
        if self.suffix is not None and self.echo:
            raise InvalidParameter("suffix excludes echo; ask for one of them", "suffix")
        if self.suffix is not None and not all(isinstance(prompt, str) for prompt in self.prompt):
            raise InvalidParameter("suffix needs a prompt of text, not of token ids", "suffix")
        return self

    @property
    def tries(self) -> int:
        """Answers that are decoded to each prompt, of which the likeliest are sent."""
        return self.best_of if self.best_of is not None else self.answers_wanted

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
    speculation_detail: list[StepRecord]
