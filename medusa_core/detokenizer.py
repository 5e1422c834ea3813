"""Text that is safe to show while the tokens of an answer still arrive."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from medusa_core.token_bytes import TokenBytes

__all__ = ["TextPiece", "TextStream"]

# A character that no further token of this many would complete is not a split one: the model emits invalid bytes.
MAX_PENDING_TOKENS = 64
# Enough to spell the character and the space before the answer's first token.
CONTEXT_TOKENS = 8
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class TextPiece:
    """What a few more tokens add to an answer's text.

    text:        safe to show; ends before a stop string.
    tokens_used: tokens of the push that belong to the answer: all of them, or up to and including the one that
                 completed a stop string.
    stopped:     a stop string was met; nothing follows.
    offsets:     one for each used token: characters of the answer that the tokens before it completed.
    """

    text: str
    tokens_used: int
    stopped: bool
    offsets: tuple[int, ...]


class TextStream:
    """The text of one answer: tokens in, text out that no later token can change or take back.

    Held back are the bytes of an unfinished character and the shortest suffix that may begin a stop string.
    """

    # tokenizers' DecodeStream raises a bare Exception where byte-fallback tokens change what came before them, so
    # the window is kept here: text grows by what decoding it with the new tokens adds.

    def __init__(
        self,
        backend: Tokenizer,
        spelling: TokenBytes,
        stop: Sequence[str],
        prompt: Sequence[int],
        keeps_special: bool,
    ) -> None:
        self._backend, self._spelling, self._keeps_special = backend, spelling, keeps_special
        self._stop = tuple(string for string in stop if string)
        self._window = list(prompt[-CONTEXT_TOKENS:])
        self._released = len(self._window)
        self._held = ""
        self._length = 0
        self._stopped = False

    def without_stops(self) -> "TextStream":
        """The text of the same answer as if there were no stop strings; to be asked for before the first token."""
        return TextStream(self._backend, self._spelling, (), self._window, self._keeps_special)

    def push(self, tokens: Sequence[int]) -> TextPiece:
        """Add tokens in order; the piece holds the text that became safe.

        The stop string that is completed first wins, of several completed together the longest. Tokens after it
        are not used.
        """
        offsets: list[int] = []
        for token in tokens:
            if self._stopped:
                break
            offsets.append(self._length)
            text = self._text_of(token)
            self._length += len(text)
            self._held += text
            self._cut_at_stop()
        safe = len(self._held) if self._stopped else len(self._held) - self._length_of_possible_stop()
        text, self._held = self._held[:safe], self._held[safe:]
        return TextPiece(text, len(offsets), self._stopped, tuple(offsets))

    def finish(self) -> str:
        """The text still held back, at the end of an answer that no stop string ended.

        A character whose last bytes never came cannot be shown and is dropped.
        """
        if self._stopped:
            return ""
        pending = self._pending_text()
        shown = pending.rstrip(REPLACEMENT)
        spelt = b"".join(map(self._spelling.of, self._window[self._released :]))
        meant = 0  # the character that stands for broken ones may also have been meant
        while spelt.endswith(REPLACEMENT.encode()):
            spelt, meant = spelt.removesuffix(REPLACEMENT.encode()), meant + 1
        self._held += pending[: len(shown) + meant]
        self._cut_at_stop()
        self._stopped = True
        return self._held

    def _text_of(self, token: int) -> str:
        """Text that one more token completes, empty while a character is unfinished."""
        self._window.append(token)
        text = self._pending_text()
        is_unfinished = not text or text.endswith(REPLACEMENT)
        if is_unfinished and len(self._window) - self._released <= MAX_PENDING_TOKENS:
            return ""
        self._window = self._window[self._released :]
        self._released = len(self._window)
        return text

    def _pending_text(self) -> str:
        """What the tokens behind the released ones add to their text."""
        released = self._decode(self._window[: self._released])
        return self._decode(self._window)[len(released) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._backend.decode(tokens, skip_special_tokens=not self._keeps_special)

    def _cut_at_stop(self) -> None:
        matches = [(start + len(string), start) for string in self._stop if (start := self._held.find(string)) >= 0]
        if matches:
            _, start = min(matches)
            self._held = self._held[:start]
            self._stopped = True

    def _length_of_possible_stop(self) -> int:
        """Length of the longest suffix of the held text that begins a stop string."""
        longest = max((len(string) for string in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-length:]) for string in self._stop):
                return length
        return 0
