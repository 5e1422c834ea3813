"""Tokens with their log-probabilities in the shapes of both endpoints."""

from collections.abc import Sequence
from dataclasses import dataclass

from medusa_core.text import TextCodec
from server.schemas.chat import ChatLogprobs, ChatTokenLogprob
from server.schemas.completions import CompletionLogprobs
from server.worker.messages import TokenLogprobs

__all__ = ["ScoredToken", "chat_logprobs", "completion_logprobs", "spelling"]

# JSON has no infinity; what OpenAI sends for the unthinkable.
_FLOOR = -9999.0


@dataclass(frozen=True)
class ScoredToken:
    """One token of a text.

    offset: characters of the text before it.
    score:  None for the first token of a prompt, which follows nothing.
    """

    token: int
    offset: int
    score: TokenLogprobs | None


def spelling(codec: TextCodec, token: int) -> str:
    """A token as a string; one that holds half a character is spelt by its bytes, as OpenAI does."""
    spelt = codec.token_bytes(token)
    try:
        return spelt.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)


def completion_logprobs(tokens: Sequence[ScoredToken], codec: TextCodec) -> CompletionLogprobs:
    """Lists of equal length; the alternatives always hold the token itself."""
    return {
        "tokens": [spelling(codec, entry.token) for entry in tokens],
        "token_logprobs": [_floor(entry.score.logprob) if entry.score is not None else None for entry in tokens],
        "top_logprobs": [_alternatives(entry, codec) for entry in tokens],
        "text_offset": [entry.offset for entry in tokens],
    }


def chat_logprobs(tokens: Sequence[ScoredToken], codec: TextCodec) -> ChatLogprobs:
    """One entry per token, alternatives in descending order."""
    return {
        "content": [
            {
                **_chat_entry(entry.token, entry.score.logprob, codec),
                "top_logprobs": [_chat_entry(token, logprob, codec) for token, logprob in entry.score.top],
            }
            for entry in tokens
            if entry.score is not None
        ],
        "refusal": None,
    }


def _alternatives(entry: ScoredToken, codec: TextCodec) -> dict[str, float] | None:
    if entry.score is None:
        return None
    found: dict[str, float] = {}
    for token, logprob in [*entry.score.top, (entry.token, entry.score.logprob)]:
        text = spelling(codec, token)
        # two ids may spell the same
        found[text] = max(found.get(text, _FLOOR), _floor(logprob))
    return found


def _chat_entry(token: int, logprob: float, codec: TextCodec) -> ChatTokenLogprob:
    return {"token": spelling(codec, token), "logprob": _floor(logprob), "bytes": list(codec.token_bytes(token))}


def _floor(logprob: float) -> float:
    return max(logprob, _FLOOR)
