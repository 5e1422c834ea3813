"""POST /v1/chat/completions."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fastapi import APIRouter, Request, Response

from medusa_core.text import TextCodec
from server.answer import Piece
from server.answering import Answering, Whole, fingerprint
from server.asking import check_prompt, several, to_generate
from server.openapi import CHAT, generation_responses
from server.schemas.chat import ChatCompletion, ChatCompletionChunk, ChatLogprobs, ChatRequest, ChunkChoice, Delta
from server.schemas.common import SpeculationStats, Usage
from server.token_scores import chat_logprobs
from server.worker.messages import FinishReason

__all__ = ["ChatShape", "chat_router"]


@dataclass(frozen=True)
class ChatShape:
    """A chat answer on the wire."""

    id: str
    created: int
    model: str
    fingerprint: str
    include_usage: bool
    codec: TextCodec
    endpoint: Literal["chat"] = "chat"

    def whole(self, answers: Sequence[Whole], usage: Usage, stats: SpeculationStats) -> ChatCompletion:
        """All answers, each in one piece."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": answer.piece.text, "refusal": None},
                    "logprobs": self._logprobs(answer.piece),
                    "finish_reason": answer.reason,
                }
                for index, answer in enumerate(answers)
            ],
            "usage": usage,
            "speculation": stats,
        }

    def opening(self, index: int) -> list[ChatCompletionChunk]:
        """The role, exactly once for each answer: clients concatenate what comes twice."""
        return [self._chunk(index, {"role": "assistant", "content": ""}, None, None)]

    def piece(self, index: int, piece: Piece) -> ChatCompletionChunk:
        """A chunk of text."""
        return self._chunk(index, {"content": piece.text}, None, self._logprobs(piece))

    def finish(self, index: int, reason: FinishReason, stats: SpeculationStats | None) -> ChatCompletionChunk:
        """An empty delta that says why the answer ended."""
        chunk = self._chunk(index, {}, reason, None)
        if stats is not None:
            chunk["speculation"] = stats
        return chunk

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

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        return chat_logprobs(piece.tokens, self.codec) if piece.tokens is not None else None

    def _chunk(
        self, index: int, delta: Delta, reason: FinishReason | None, logprobs: ChatLogprobs | None
    ) -> ChatCompletionChunk:
        chunk = self._empty()
        choice: ChunkChoice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk["choices"] = [choice]
        return chunk


def chat_router(answering: Answering) -> APIRouter:
    """The endpoint over the given answering."""
    router = APIRouter(tags=[CHAT])

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=generation_responses())
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation, streamed or in one piece."""
        answering.check_model(body.model)
        info = answering.worker.ready_info()
        messages = [message.for_template() for message in body.messages]
        encode = partial(
            answering.codec.encode_chat,
            messages,
            add_generation_prompt=body.starts_turn,
            continue_final_message=body.continue_final_message,
            template_arguments=body.chat_template_kwargs,
        )
        prompt = await asyncio.to_thread(encode)
        max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        check_prompt(prompt, max_tokens, info, "messages")
        generate = to_generate(body, prompt, max_tokens, info, body.top_logprobs_wanted, score_prompt=False)
        # an answer is a text of its own, unless it goes on with one
        stream = partial(answering.codec.stream, body.stop, prompt if body.continue_final_message else ())
        wanted = several(generate, body.answers_wanted, stream, None, first=0)
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        identity = answering.new_id("chatcmpl"), int(time.time()), answering.model_name, fingerprint(info)
        shape = ChatShape(*identity, include_usage, answering.codec)
        return await answering.respond(request, body, wanted, len(wanted), body.logprobs, shape)

    return router
