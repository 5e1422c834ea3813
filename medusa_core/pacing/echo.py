"""Whether a sequence repeats itself, which prompt lookup then foresees. On the host, from tokens that are known."""

from collections.abc import Iterable, Sequence

__all__ = ["Echo"]

# Tokens that have to stand behind each other as they did before: behind fewer, what follows is often another.
_LENGTH = 4


class Echo:
    """Remembers every few tokens of a sequence, and of texts that it is expected to repeat; mutable."""

    def __init__(self, texts: Iterable[Sequence[int]]) -> None:
        """The texts that are known, the sequence itself last."""
        self._seen: set[tuple[int, ...]] = set()
        self._end: tuple[int, ...] = ()
        for text in texts:
            self._end = ()
            self.extend(text)

    def extend(self, tokens: Sequence[int]) -> None:
        """The sequence goes on with these."""
        for token in tokens:
            if len(self._end) == _LENGTH:
                self._seen.add(self._end)
            self._end = (*self._end, token)[-_LENGTH:]

    @property
    def is_heard(self) -> bool:
        """Whether the last tokens have stood in this order before, with something behind them."""
        return self._end in self._seen
