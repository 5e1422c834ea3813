"""POST /v1/completions."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from medusa_core.text import TextCodec
from server.answer import Echo, Piece
from server.answering import Answering, check_prompt, to_generate
from server.schemas.common import SpeculationStats, Usage
from server.schemas.completions import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionRequest,
)
from server.token_scores import completion_logprobs
from server.worker.messages import FinishReason

__all__ = ["CompletionShape", "completions_router"]


@dataclass(frozen=True)
class CompletionShape:
    """A text completion on the wire; `text` is a string in every chunk."""

    id: str
    created: int
    model: str
    include_usage: bool
    codec: TextCodec
    endpoint: Literal["completions"] = "completions"

    def whole(self, piece: Piece, reason: FinishReason, usage: Usage, stats: SpeculationStats) -> Completion:
        """The answer in one piece."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": [self._choice(piece, reason)],
            "usage": usage,
            "speculation": stats,
        }

    def opening(self) -> list[CompletionChunk]:
        """Nothing comes before the text."""
        return []

    def piece(self, piece: Piece) -> CompletionChunk:
        """A chunk of text."""
        return self._chunk([self._choice(piece, None)])

    def finish(self, reason: FinishReason, stats: SpeculationStats) -> CompletionChunk:
        """No more text, and why."""
        chunk = self._chunk([self._choice(Piece("", None), reason)])
        chunk["speculation"] = stats
        return chunk

    def usage(self, usage: Usage) -> CompletionChunk:
        """The chunk without choices."""
        chunk = self._chunk([])
        chunk["usage"] = usage
        return chunk

    def _choice(self, piece: Piece, reason: FinishReason | None) -> CompletionChoice:
        logprobs = completion_logprobs(piece.tokens, self.codec) if piece.tokens is not None else None
        return {"index": 0, "text": piece.text, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(self, choices: list[CompletionChoice]) -> CompletionChunk:
        chunk: CompletionChunk = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
        }
        if self.include_usage:
            chunk["usage"] = None
        return chunk


def _echo(body: CompletionRequest, prompt: list[int], codec: TextCodec) -> Echo:
    """The prompt as it was sent; one of token ids as the text they spell."""
    spelt = codec.stream()
    piece = spelt.push(prompt)
    text = body.prompt if isinstance(body.prompt, str) else piece.text + spelt.finish()
    return Echo(text, tuple(prompt), piece.offsets)


def completions_router(answering: Answering, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The endpoint over the given answering; `responses` documents its errors."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=Completion, responses=responses)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue a text, streamed or in one piece."""
        answering.check_model(body.model)
        info = answering.worker.ready_info()
        prompt = body.prompt
        if isinstance(prompt, str):
            prompt = await asyncio.to_thread(answering.codec.encode, prompt)
        max_tokens = body.max_tokens if body.max_tokens is not None else DEFAULT_MAX_TOKENS
        check_prompt(prompt, max_tokens, info, "prompt")
        top_logprobs = body.top_logprobs_wanted
        score_prompt = body.echo and top_logprobs is not None
        generate = to_generate(body, prompt, max_tokens, info, top_logprobs, score_prompt)
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        identity = answering.new_id("cmpl"), int(time.time()), answering.model_name
        shape = CompletionShape(*identity, include_usage, answering.codec)
        text = answering.codec.stream(body.stop, prompt)
        echo = await asyncio.to_thread(_echo, body, prompt, answering.codec) if body.echo else None
        return await answering.respond(request, body, generate, text, shape, echo)

    return router
