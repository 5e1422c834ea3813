"""POST /v1/chat/completions: request and answers."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from typing_extensions import TypedDict

from medusa_core.errors import InvalidParameter, UnsupportedParameter
from server.schemas.common import INT64, MAX_TOP_LOGPROBS, Flag, GenerationFields, SpeculationStats, Usage

__all__ = [
    "AssistantMessage",
    "ChatChoice",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatLogprobs",
    "ChatRequest",
    "ChatScoredToken",
    "ChatTokenLogprob",
    "ChunkChoice",
    "Delta",
    "Message",
]


def _content(value: object) -> object:
    """A string, or text parts joined as they are."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts")
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal"):
            if isinstance(kind, str):
                raise UnsupportedParameter(
                    "messages", f"a content part of type {kind[:64]!r}; the model reads text only"
                )
            raise ValueError("has a part that is no object with a type")
        text = part.get(kind)
        if not isinstance(text, str):
            raise ValueError(f"has a {kind} part without a string {kind!r}")
        texts.append(text)
    return "".join(texts)


CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
        {"type": "null"},
    ]
}


class Message(BaseModel):
    """One turn of a conversation; keys that no template knows are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | None, BeforeValidator(_content), WithJsonSchema(CONTENT_SCHEMA)] = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as templates expect it: absent keys left out, content always text."""
        message = self.model_dump(exclude_none=True)
        message["role"] = "system" if self.role == "developer" else self.role
        message["content"] = self.content if self.content is not None else ""
        return message


class ChatRequest(GenerationFields):
    """Answer a conversation."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, lt=INT64)
    max_tokens: int | None = Field(None, ge=1, lt=INT64)
    logprobs: Flag = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _alternatives_need_log_probabilities(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise InvalidParameter("top_logprobs needs logprobs: true", "top_logprobs")
        return self

    @property
    def top_logprobs_wanted(self) -> int | None:
        """Alternatives to report with each token; None reports no log-probabilities."""
        if not self.logprobs:
            return None
        return self.top_logprobs if self.top_logprobs is not None else 0


class ChatTokenLogprob(TypedDict):
    """A token, what it spells, and how likely the model found it."""

    token: str
    logprob: float
    bytes: list[int]


class ChatScoredToken(ChatTokenLogprob):
    """A token of the answer with the likeliest ones in its place, best first."""

    top_logprobs: list[ChatTokenLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of an answer, or of a piece of it."""

    content: list[ChatScoredToken]
    refusal: None


class AssistantMessage(TypedDict):
    """The answer's message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(TypedDict):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage
    speculation: SpeculationStats


class Delta(TypedDict, total=False):
    """What a chunk adds: the role once, text in pieces, nothing at the end."""

    role: Literal["assistant"]
    content: str


class ChunkChoice(TypedDict):
    """A piece of the answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class _ChunkBase(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChunkChoice]


class ChatCompletionChunk(_ChunkBase, total=False):
    """One event of a stream."""

    usage: Usage | None
    speculation: SpeculationStats
