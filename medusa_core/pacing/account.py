"""The seconds that trees won and lost in one request: what keeps it from being slower than plain decoding."""

__all__ = ["LIMIT", "LIMIT_TOKENS", "Account"]

# Share of plain decoding's time that trees may lose in a request, counted as of so many tokens at least: short
# answers, too, have to find out what pays.
LIMIT, LIMIT_TOKENS = 0.03, 100


class Account:
    """Seconds won over plain decoding so far, and what that would have taken; mutable.

    A step is charged in full when it is chosen, and credited when its result is known, which may be later.
    """

    def __init__(self) -> None:
        self._won, self._plain = 0.0, 0.0

    def charge(self, extra_s: float, plain_s: float) -> None:
        """A step is taken that costs so much more than a plain one, and brings what a plain one brings."""
        self._won -= extra_s
        self._plain += plain_s

    def credit(self, won_s: float) -> None:
        """The step brought tokens for which plain decoding would have taken so long."""
        self._won += won_s
        self._plain += won_s

    def affords(self, extra_s: float, plain_s: float, share: float) -> bool:
        """Whether a step that costs so much more may be in vain.

        plain_s: a plain step where the answer begins: later ones take as long at least.
        share:   of the limit that may be used up; what is left is for better prospects.
        """
        allowed = share * LIMIT * max(self._plain, LIMIT_TOKENS * plain_s)
        return extra_s <= 0.0 or self._won - extra_s >= -allowed
