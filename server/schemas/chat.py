"""POST /v1/chat/completions: request and answers."""

from typing import Any, Literal, NotRequired, Self

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from medusa_core.errors import InvalidParameter
from server.schemas.common import INT64, MAX_TOP_LOGPROBS, Flag, GenerationFields
from server.schemas.messages import Message, TemplateArguments, check_ending
from server.schemas.tools import ToolCall, ToolCallDelta, ToolFields
from server.schemas.usage import SpeculationStats, StepRecord, Usage

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
    "FinishedBy",
]


EXAMPLE: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "What does textwrap.dedent do?"}],
    "max_tokens": 64,
}


class ChatRequest(GenerationFields, ToolFields):
    """Answer a conversation."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    add_generation_prompt: bool | None = None
    continue_final_message: Flag = False
    chat_template_kwargs: TemplateArguments = Field(default_factory=dict)
    max_completion_tokens: int | None = Field(None, ge=1, lt=INT64)
    max_tokens: int | None = Field(None, ge=1, lt=INT64)
    logprobs: Flag = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _alternatives_need_log_probabilities(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise InvalidParameter("top_logprobs needs logprobs: true", "top_logprobs")
        return self

    @model_validator(mode="after")
    def _the_prompt_can_end_so(self) -> Self:
        check_ending(self.messages, self.add_generation_prompt, self.continue_final_message)
        return self

    @property
    def starts_turn(self) -> bool:
        """Whether the prompt ends with the start of an assistant's turn."""
        return self.add_generation_prompt is not False and not self.continue_final_message

    @property
    def may_wish_form(self) -> bool:
        """Whether a form may be compiled: that of calls, too."""
        return super().may_wish_form or bool(self.tools) or bool(self.functions)

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


FinishedBy = Literal["stop", "length", "tool_calls"]


class AssistantMessage(TypedDict):
    """The answer's message; content is null where there are calls instead."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishedBy


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
    """What a chunk adds: the role once, text and calls in pieces, nothing at the end."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[ToolCallDelta]


class ChunkChoice(TypedDict):
    """A piece of the answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishedBy | None


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
    speculation_detail: list[StepRecord]
