"""POST /v1/chat/completions."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from fastapi import APIRouter, Request, Response

from medusa_core.errors import InvalidParameter
from medusa_core.text import TextCodec
from server.answer import Piece
from server.answering import Answering, Whole, fingerprint
from server.asking import Wanted, check_length, check_prompt, check_scores, predicted_tokens, several, to_generate
from server.call_events import CallOpened, Content, Event, Reasoning, call_delta, fold
from server.calling import Calling, PlainStream, plan_calls
from server.openapi import CHAT, generation_responses
from server.schemas.chat import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    Delta,
    FinishedBy,
)
from server.schemas.usage import SpeculationStats, Usage
from server.token_scores import chat_logprobs
from server.tool_calls import CallStream
from server.worker.messages import FinishReason, WorkerInfo

__all__ = ["ChatShape", "chat_router"]


@dataclass(frozen=True)
class ChatShape:
    """A chat answer on the wire.

    streams:  one for each answer, tells its content from the calls in it.
    is_named: whether one certain function had to be called.
    callers:  indices of the answers that have called something, known as they are written.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    include_usage: bool
    codec: TextCodec
    streams: Sequence[CallStream]
    is_named: bool
    callers: set[int] = field(default_factory=set)
    endpoint: Literal["chat"] = "chat"

    def whole(self, answers: Sequence[Whole], usage: Usage, stats: SpeculationStats) -> ChatCompletion:
        """All answers, each in one piece."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage,
            "speculation": stats,
        }

    def opening(self, index: int) -> list[ChatCompletionChunk]:
        """The role, exactly once for each answer: clients concatenate what comes twice."""
        return [self._chunk(index, {"role": "assistant", "content": ""}, None, None)]

    def piece(self, index: int, piece: Piece) -> list[ChatCompletionChunk]:
        """Chunks of text, of reasoning and of calls; log-probabilities and records come with the first or alone."""
        deltas = [self._delta(index, event) for event in self.streams[index].feed(piece.text)]
        logprobs = self._logprobs(piece)
        if (logprobs is not None or piece.records) and not deltas:
            deltas = [{}]
        chunks = [
            self._chunk(index, delta, None, logprobs if number == 0 else None) for number, delta in enumerate(deltas)
        ]
        if piece.records:
            chunks[0]["speculation_detail"] = list(piece.records)
        return chunks

    def finish(self, index: int, reason: FinishReason, stats: SpeculationStats | None) -> list[ChatCompletionChunk]:
        """What was held back, then an empty delta that says why the answer ended."""
        deltas = [self._delta(index, event) for event in self.streams[index].finish()]
        chunks = [self._chunk(index, delta, None, None) for delta in deltas]
        chunk = self._chunk(index, {}, self.outcome(index, reason), None)
        if stats is not None:
            chunk["speculation"] = stats
        return [*chunks, chunk]

    def outcome(self, index: int, reason: FinishReason) -> FinishedBy:
        """Calls the model chose to make are the reason it stopped; OpenAI says stop of one that was named."""
        has_called = reason == "stop" and index in self.callers and not self.is_named
        return "tool_calls" if has_called else reason

    def usage(self, usage: Usage) -> ChatCompletionChunk:
        """The chunk without choices."""
        chunk = self._empty()
        chunk["usage"] = usage
        return chunk

    def _empty(self) -> ChatCompletionChunk:
        chunk: ChatCompletionChunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": [],
        }
        if self.include_usage:
            chunk["usage"] = None
        return chunk

    def _choice(self, index: int, answer: Whole) -> ChatChoice:
        events = [*self.streams[index].feed(answer.piece.text), *self.streams[index].finish()]
        self._note_calls(index, events)
        folded = fold(events)
        message: AssistantMessage = {"role": "assistant", "content": folded.content, "refusal": None}
        if folded.reasoning is not None:
            message["reasoning_content"] = folded.reasoning
        if folded.tool_calls:
            message["tool_calls"] = folded.tool_calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer.piece),
            "finish_reason": self.outcome(index, answer.reason),
        }

    def _delta(self, index: int, event: Event) -> Delta:
        self._note_calls(index, [event])
        match event:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning_content": text}
            case _:
                return {"tool_calls": [call_delta(event)]}

    def _note_calls(self, index: int, events: Sequence[Event]) -> None:
        if any(isinstance(event, CallOpened) for event in events):
            self.callers.add(index)

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        return chat_logprobs(piece.tokens, self.codec) if piece.tokens is not None else None

    def _chunk(
        self, index: int, delta: Delta, reason: FinishedBy | None, logprobs: ChatLogprobs | None
    ) -> ChatCompletionChunk:
        chunk = self._empty()
        choice: ChunkChoice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk["choices"] = [choice]
        return chunk


def _calling(body: ChatRequest, codec: TextCodec) -> Calling | None:
    """What the request's tools come to, which leave no room for another form."""
    calling = plan_calls(body.tool_request, codec)
    wish = body.wished_form() if calling is not None else None
    if wish is not None:
        raise InvalidParameter("an answer that may call tools has no other form; send tool_choice none", wish.param)
    return calling


def _wanted(
    body: ChatRequest, info: WorkerInfo, answering: Answering
) -> tuple[Calling | None, list[Wanted], list[CallStream]]:
    """How calls come about, all answers, and what finds the calls in each."""
    codec = answering.codec
    calling = _calling(body, codec)
    max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    # a template adds to what the messages say, and leaves none of it out but what the model once thought
    contents = [message.content for message in body.messages if message.content is not None]
    check_length(contents, max_tokens, codec, info, "messages")
    prompt = codec.encode_chat(
        [message.for_template() for message in body.messages],
        tools=calling.offered if calling is not None else None,
        add_generation_prompt=body.starts_turn,
        continue_final_message=body.continue_final_message,
        template_arguments=body.chat_template_kwargs,
    )
    check_prompt(prompt, max_tokens, info, "messages")
    grammar = calling.grammar if calling is not None else answering.grammars.wished(body, info)
    if calling is not None and calling.grammar is not None:
        answering.grammars.check_spelling(json.dumps(calling.offered, ensure_ascii=False), "tools")
        answering.grammars.check(calling.grammar, info, "tools")
    generate = to_generate(
        body,
        prompt,
        max_tokens,
        info,
        body.top_logprobs_wanted,
        score_prompt=False,
        grammar=grammar,
        prediction=predicted_tokens(body, codec),
    )
    # an answer is a text of its own, unless it goes on with one
    before = prompt if body.continue_final_message else ()
    # a forced call is no text for a stop string to cut, its arguments always parse
    stops = body.stop if calling is None or not calling.is_forced else ()
    # the marks of a call may be special tokens
    stream = partial(codec.stream, stops, before, keeps_special=calling is not None)
    wanted = several(generate, body.answers_wanted, stream, None, first=0)
    check_scores(wanted, info)
    return calling, wanted, [calling.stream(prompt) if calling is not None else PlainStream() for _ in wanted]


def chat_router(answering: Answering) -> APIRouter:
    """The endpoint over the given answering."""
    router = APIRouter(tags=[CHAT])

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=generation_responses())
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation, streamed or in one piece."""
        answering.names.check(body.model)
        info = answering.worker.ready_info()
        calling, wanted, streams = await answering.prepare(request, body, lambda: _wanted(body, info, answering))
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        identity = answering.new_id("chatcmpl"), int(time.time()), answering.names.shown, fingerprint(info)
        is_named = calling is not None and calling.is_named
        shape = ChatShape(*identity, include_usage, answering.codec, streams, is_named)
        return await answering.respond(request, body, wanted, len(wanted), body.logprobs, shape)

    return router
