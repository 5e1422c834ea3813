"""Which requests belong to one conversation, told by the request alone: for whoever spreads them over replicas."""

import hashlib

import msgspec
from starlette.datastructures import Headers

__all__ = ["SESSION_HEADER", "conversation_key"]

SESSION_HEADER = "x-session-id"
# How much of a prompt tells conversations of the completions endpoint apart, in bytes of JSON.
OPENING_BYTES = 256


def conversation_key(headers: Headers, body: bytes) -> str:
    """What all requests of one conversation have in common; empty for a request that belongs to none.

    The client's own word goes first: the header x-session-id, then the field prompt_cache_key. Others are known by how
    they begin: a chat by its messages up to the user's first one, a completion by the first bytes of its prompt. The
    API key is part of it, as no replica lets one key use what it computed for another.
    """
    try:
        parts = [headers[SESSION_HEADER].encode()] if SESSION_HEADER in headers else _opening(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""  # whoever answers it says what is wrong with it
    if not any(parts):
        return ""
    return hashlib.sha256(b"\0".join([headers.get("authorization", "").encode(), *parts])).hexdigest()


def _opening(body: bytes) -> list[bytes]:
    """The parts of a JSON body that stay the same for a whole conversation; raises what msgspec raises."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    named = bytes(fields.get("prompt_cache_key", msgspec.Raw(b"null")))
    if named != b"null":
        return [named]
    if "messages" not in fields:
        return [bytes(fields.get("prompt", msgspec.Raw(b"")))[:OPENING_BYTES]]
    messages = msgspec.json.decode(fields["messages"], type=list[dict[str, msgspec.Raw]])
    first = next((at for at, one in enumerate(messages) if bytes(one.get("role", b"")) == b'"user"'), len(messages))
    return [bytes(one.get("content", b"")) for one in messages[: first + 1]]
