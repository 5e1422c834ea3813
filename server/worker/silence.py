"""How long nothing was heard of somebody."""

__all__ = ["Silence"]


class Silence:
    """Time without a sign of life, as far as somebody listened for one.

    Time in which the listener itself stood still counts as one look at most: a server that was stopped and continued,
    or whose machine slept, has not listened.

    seconds: of silence at the last look.
    """

    def __init__(self, now_s: float, longest_look_s: float) -> None:
        """Begin to listen; looks that come further apart than longest_look_s count as if they had not."""
        self.seconds = 0.0
        self._longest_look_s = longest_look_s
        self._looked_s = now_s
        self._signs = self._signs_seen = 0

    def end(self) -> None:
        """There was a sign of life; called from the thread that hears them."""
        self._signs += 1

    def look(self, now_s: float) -> float:
        """Seconds of silence until this monotonic time."""
        signs, passed_s = self._signs, min(now_s - self._looked_s, self._longest_look_s)
        self.seconds = 0.0 if signs != self._signs_seen else self.seconds + passed_s
        self._signs_seen, self._looked_s = signs, now_s
        return self.seconds
