"""POST /v1/completions."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec
from fastapi import APIRouter, Request, Response

from medusa_core.text import TextCodec
from server.answer import Echo, Piece
from server.answering import Answering, Whole, fingerprint
from server.asking import Wanted, check_length, check_prompt, check_scores, predicted_tokens, several, to_generate
from server.openapi import COMPLETIONS, generation_responses
from server.schemas.completions import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionRequest,
)
from server.schemas.usage import SpeculationStats, Usage
from server.token_scores import completion_logprobs
from server.worker.messages import FinishReason, WorkerInfo

__all__ = ["CompletionShape", "completions_router"]


@dataclass(frozen=True)
class CompletionShape:
    """A text completion on the wire; `text` is a string in every chunk."""

    id: str
    created: int
    model: str
    fingerprint: str
    include_usage: bool
    codec: TextCodec
    endpoint: Literal["completions"] = "completions"

    def whole(self, answers: Sequence[Whole], usage: Usage, stats: SpeculationStats) -> Completion:
        """All answers, each in one piece."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": [self._choice(index, one.piece, one.reason) for index, one in enumerate(answers)],
            "usage": usage,
            "speculation": stats,
        }

    def opening(self, index: int) -> list[CompletionChunk]:
        """Nothing comes before the text."""
        return []

    def piece(self, index: int, piece: Piece) -> list[CompletionChunk]:
        """A chunk of text."""
        chunk = self._chunk([self._choice(index, piece, None)])
        if piece.records:
            chunk["speculation_detail"] = list(piece.records)
        return [chunk]

    def finish(self, index: int, reason: FinishReason, stats: SpeculationStats | None) -> list[CompletionChunk]:
        """No more text, and why."""
        chunk = self._chunk([self._choice(index, Piece("", None), reason)])
        if stats is not None:
            chunk["speculation"] = stats
        return [chunk]

    def outcome(self, index: int, reason: FinishReason) -> FinishReason:
        """As the worker says."""
        return reason

    def usage(self, usage: Usage) -> CompletionChunk:
        """The chunk without choices."""
        chunk = self._chunk([])
        chunk["usage"] = usage
        return chunk

    def _choice(self, index: int, piece: Piece, reason: FinishReason | None) -> CompletionChoice:
        logprobs = completion_logprobs(piece.tokens, self.codec) if piece.tokens is not None else None
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(self, choices: list[CompletionChoice]) -> CompletionChunk:
        chunk: CompletionChunk = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        if self.include_usage:
            chunk["usage"] = None
        return chunk


def _echo(prompt: str | list[int], tokens: list[int], codec: TextCodec) -> Echo:
    """The prompt as it was sent; one of token ids as the text they spell, special tokens included."""
    spelt = codec.stream(keeps_special=True)
    piece = spelt.push(tokens)
    if not isinstance(prompt, str):
        return Echo(piece.text + spelt.finish(), tuple(tokens), piece.offsets)
    # a token that the tokenizer put in front spells nothing of the prompt
    added = len(codec.decode(codec.encode(""), skip_special_tokens=False))
    return Echo(prompt, tuple(tokens), tuple(max(0, offset - added) for offset in piece.offsets))


def _encoded(prompt: str | list[int], suffix: str | None, codec: TextCodec) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    return codec.encode(prompt) if suffix is None else codec.encode_infill(prompt, suffix)


def _wanted(body: CompletionRequest, max_tokens: int, info: WorkerInfo, answering: Answering) -> list[Wanted]:
    """All answers to all prompts, in the order of their index."""
    wanted: list[Wanted] = []
    codec = answering.codec
    grammar, predicted = answering.grammars.wished(body, info), predicted_tokens(body, codec)
    # the best of several is chosen by its log-probability
    top_logprobs = body.top_logprobs_wanted
    top_logprobs = 0 if top_logprobs is None and body.tries > body.answers_wanted else top_logprobs
    score_prompt = body.echo and body.top_logprobs_wanted is not None
    for prompt in body.prompt:
        if isinstance(prompt, str):
            check_length(
                [prompt, *([body.suffix] if body.suffix is not None else [])], max_tokens, codec, info, "prompt"
            )
        tokens = _encoded(prompt, body.suffix, codec)
        check_prompt(tokens, max_tokens, info, "prompt")
        generate = to_generate(body, tokens, max_tokens, info, top_logprobs, score_prompt, grammar, predicted)
        if body.suffix is not None and not body.ignore_eos:
            stops = [*generate.stop_token_ids, *codec.infill_ends]
            generate = msgspec.structs.replace(generate, stop_token_ids=stops)
        echo = _echo(prompt, tokens, codec) if body.echo else None
        stream = partial(codec.stream, body.stop, tokens)
        wanted += several(generate, body.tries, stream, echo, first=len(wanted))
    check_scores(wanted, info)
    return wanted


def completions_router(answering: Answering) -> APIRouter:
    """The endpoint over the given answering."""
    router = APIRouter(tags=[COMPLETIONS])

    @router.post("/v1/completions", response_model=Completion, responses=generation_responses())
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue a text, streamed or in one piece."""
        answering.names.check(body.model)
        info = answering.worker.ready_info()
        max_tokens = body.max_tokens if body.max_tokens is not None else DEFAULT_MAX_TOKENS
        wanted = await answering.prepare(request, body, lambda: _wanted(body, max_tokens, info, answering))
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        identity = answering.new_id("cmpl"), int(time.time()), answering.names.shown, fingerprint(info)
        shape = CompletionShape(*identity, include_usage, answering.codec)
        is_scored = body.top_logprobs_wanted is not None
        return await answering.respond(request, body, wanted, body.answers_wanted, is_scored, shape)

    return router
