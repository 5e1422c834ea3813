"""POST /tokenize and /detokenize: the tokenizer over HTTP, without the model."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Response

from medusa_core.errors import InvalidParameter
from medusa_core.text import TextCodec
from server.answering import Answering
from server.openapi import TOKENS, error_responses
from server.schemas.common import RequestFields
from server.schemas.tokenize import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

__all__ = ["tokenize_router"]


def _tokens(body: TokenizeRequest, codec: TextCodec) -> list[int]:
    if body.prompt is not None:
        return codec.encode(body.prompt, body.add_special_tokens is not False)
    assert body.messages is not None, "the schema lets one of the two through"
    return codec.encode_chat(
        [message.for_template() for message in body.messages],
        tools=body.tool_request.offered if body.tool_request is not None else None,
        add_generation_prompt=body.starts_turn,
        continue_final_message=body.continue_final_message,
        template_arguments=body.chat_template_kwargs,
        add_special_tokens=body.add_special_tokens is True,
    )


def _tokenized(body: TokenizeRequest, codec: TextCodec, max_context: int | None) -> Tokenized:
    tokens = _tokens(body, codec)
    strings = [codec.token_string(token) or "" for token in tokens] if body.return_token_strs else None
    return {"count": len(tokens), "max_model_len": max_context, "tokens": tokens, "token_strs": strings}


def _detokenized(body: DetokenizeRequest, codec: TextCodec) -> Detokenized:
    outside = next((token for token in set(body.tokens) if codec.token_string(token) is None), None)
    if outside is not None:
        raise InvalidParameter(f"token id {outside} is outside the tokenizer's vocabulary", "tokens")
    return {"prompt": codec.decode(body.tokens, skip_special_tokens=False)}


def _json(answer: Mapping[str, Any], body: RequestFields) -> Response:
    ignored = body.ignored_fields()
    headers = {"x-ignored-fields": ignored} if ignored is not None else {}
    return Response(msgspec.json.encode(answer), headers=headers, media_type="application/json")


def tokenize_router(answering: Answering) -> APIRouter:
    """Both endpoints over the given answering; they need no loaded model."""
    router = APIRouter(tags=[TOKENS])

    @router.post("/tokenize", response_model=Tokenized, responses=error_responses(400, 404, 413))
    async def tokenize(body: TokenizeRequest) -> Response:
        """Turn a text, or a conversation, into token ids."""
        if body.model is not None:
            answering.names.check(body.model)
        info = answering.worker.info
        max_context = info.max_context if info is not None else None
        return _json(await asyncio.to_thread(_tokenized, body, answering.codec, max_context), body)

    @router.post("/detokenize", response_model=Detokenized, responses=error_responses(400, 404, 413))
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Turn token ids into text."""
        if body.model is not None:
            answering.names.check(body.model)
        return _json(await asyncio.to_thread(_detokenized, body, answering.codec), body)

    return router
