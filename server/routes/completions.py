"""POST /v1/completions."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from server.answering import Answering, check_prompt, to_generate
from server.schemas.common import SpeculationStats, Usage
from server.schemas.completions import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionRequest,
)
from server.worker.messages import FinishReason

__all__ = ["CompletionShape", "completions_router"]


@dataclass(frozen=True)
class CompletionShape:
    """A text completion on the wire; `text` is a string in every chunk."""

    id: str
    created: int
    model: str
    include_usage: bool
    endpoint: Literal["completions"] = "completions"

    def whole(self, text: str, reason: FinishReason, usage: Usage, stats: SpeculationStats) -> Completion:
        """The answer in one piece."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": [_choice(text, reason)],
            "usage": usage,
            "speculation": stats,
        }

    def opening(self) -> list[CompletionChunk]:
        """Nothing comes before the text."""
        return []

    def piece(self, text: str) -> CompletionChunk:
        """A chunk of text."""
        return self._chunk([_choice(text, None)])

    def finish(self, reason: FinishReason, stats: SpeculationStats) -> CompletionChunk:
        """No more text, and why."""
        chunk = self._chunk([_choice("", reason)])
        chunk["speculation"] = stats
        return chunk

    def usage(self, usage: Usage) -> CompletionChunk:
        """The chunk without choices."""
        chunk = self._chunk([])
        chunk["usage"] = usage
        return chunk

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


def _choice(text: str, reason: FinishReason | None) -> CompletionChoice:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}


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
        generate = to_generate(body, prompt, max_tokens, info)
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        shape = CompletionShape(answering.new_id("cmpl"), int(time.time()), answering.model_name, include_usage)
        text = answering.codec.stream(body.stop, prompt)
        return await answering.respond(request, body, generate, text, shape)

    return router
