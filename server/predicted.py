"""How much of a predicted output became part of the answer, for usage.

OpenAI counts the prediction's tokens that appear in the completion, and those that do not. That is a property of the
two texts, so it does not depend on who drafted what, nor on whether anybody did.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

__all__ = ["PredictionCount"]


class PredictionCount:
    """Walks a prediction along with its answer, in order; each token costs one look-up.

    Where the answer departs, it has found its way back when two tokens in a row stand further on in the prediction.
    """

    def __init__(self, prediction: Sequence[int]) -> None:
        self.accepted = 0
        self._prediction = prediction
        self._next = 0
        self._last: int | None = None
        self._is_last_counted = False
        self._pairs: dict[tuple[int, int], list[int]] = {}
        for place in range(len(prediction) - 1):
            self._pairs.setdefault((prediction[place], prediction[place + 1]), []).append(place)

    @property
    def rejected(self) -> int:
        """Tokens of the prediction that are not in the answer so far."""
        return len(self._prediction) - self.accepted

    def take(self, tokens: Iterable[int]) -> None:
        """More tokens of the answer."""
        for token in tokens:
            is_next = self._next < len(self._prediction) and self._prediction[self._next] == token
            found = 1 if is_next else self._way_back(token)
            self.accepted += found
            self._next += 1 if found > 0 else 0
            self._last, self._is_last_counted = token, found > 0

    def _way_back(self, token: int) -> int:
        """Tokens that are counted when this one and the last are found further on; 0 when they are not."""
        places = self._pairs.get((self._last, token), []) if self._last is not None else []
        first = bisect_left(places, self._next)
        if first == len(places):
            return 0
        self._next = places[first] + 1
        return 1 if self._is_last_counted else 2
