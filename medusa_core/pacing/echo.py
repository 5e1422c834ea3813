"""How far a sequence repeats itself, which prompt lookup then foresees. On the host, from tokens that are known."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

__all__ = ["STRENGTHS", "Echo"]

# Tokens that stand behind each other as they did before. Behind the fewest what follows is often another, behind the
# most hardly ever: whoever writes so many once more is copying.
_LENGTHS = (3, 6, 12)
# 0 where nothing is repeated, then one more for each of the lengths.
STRENGTHS = range(len(_LENGTHS) + 1)


class Echo:
    """Follows a sequence through what it, or a text that it is expected to repeat, has said before; mutable."""

    def __init__(self, texts: Iterable[Sequence[int]]) -> None:
        """The texts that are known, the sequence itself last."""
        self._known: list[int | None] = []  # texts one behind another, None between them
        self._behind: dict[tuple[int | None, ...], int] = {}  # index of what followed the same few tokens last
        self._place: int | None = None  # index of what follows if the sequence goes on repeating itself
        self._length = 0  # tokens before the place that the sequence ends with, counted up to the greatest length
        for text in texts:
            if self._known:
                self._known.append(None)
            start = len(self._known) + _LENGTHS[0]
            self._known += text
            ends = zip(*(text[first:] for first in range(_LENGTHS[0])), strict=False)
            # what ends a text has nothing behind it, and in the sequence not yet
            self._behind.update(zip(ends, range(start, len(self._known)), strict=False))
        self._end = tuple(self._known[-_LENGTHS[0] :])
        self._look_up()

    def extend(self, tokens: Sequence[int]) -> None:
        """The sequence goes on with these."""
        for token in tokens:
            self._behind[self._end] = len(self._known)
            self._known.append(token)
            self._end = tuple(self._known[-_LENGTHS[0] :])
            if self._place is not None and self._known[self._place] == token:
                self._place, self._length = self._place + 1, self._length + 1
            else:
                self._look_up()

    @property
    def strength(self) -> int:
        """How much of its end the sequence has said before, with something behind it: one of STRENGTHS."""
        if self._place is None or self._known[self._place] is None:
            return 0
        return bisect_right(_LENGTHS, self._length)

    def _look_up(self) -> None:
        self._place, self._length = self._behind.get(self._end), 0
        if self._place is not None:
            said = self._known[max(0, self._place - _LENGTHS[-1]) : self._place]
            for one, other in zip(reversed(said), reversed(self._known), strict=False):
                if one != other:
                    break
                self._length += 1
