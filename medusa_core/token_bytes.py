"""What each token spells, as bytes: one token may hold half a character, which no text can show."""

import json
from typing import Any

from tokenizers import Tokenizer

__all__ = ["TokenBytes", "byte_level_alphabet"]

# How sentencepiece vocabularies write a space, and bytes they have no piece for.
_SPACE = "\u2581"


class TokenBytes:
    """The bytes of each token of one tokenizer."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        decoder: Any = json.loads(backend.to_str()).get("decoder")
        self._byte_of = byte_level_alphabet() if "ByteLevel" in json.dumps(decoder) else None
        added = backend.get_added_tokens_decoder()
        self._added: dict[int, str] = {token: entry.content for token, entry in added.items()}

    def of(self, token: int) -> bytes:
        """The bytes of one token; none for an id that the tokenizer does not know."""
        if token in self._added:
            return self._added[token].encode()
        piece: str | None = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_of is not None:
            return bytes(self._byte_of[character] for character in piece if character in self._byte_of)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return piece.replace(_SPACE, " ").encode()


def byte_level_alphabet() -> dict[str, int]:
    """How byte-level vocabularies write bytes: printable ones as themselves, the others as characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
