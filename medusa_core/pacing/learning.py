"""The size with most tokens per second at every step, and plain decoding where no tree pays.

Tokens per step are learnt from what is accepted; seconds are those that were measured once, so that what else the
machine does changes no choice. However wrong the averages are, an account of the seconds that trees won and lost keeps
a request from being slower than plain decoding by more than LIMIT.
"""

from collections.abc import Mapping, Sequence

from medusa_core.pacing.costs import StepCosts
from medusa_core.pacing.gains import Gains

__all__ = ["LIMIT", "LIMIT_TOKENS", "LearningPace", "Pacing"]

# Share of plain decoding's time that trees may lose in a request, counted as of so many tokens at least: short
# answers, too, have to find out what pays.
LIMIT, LIMIT_TOKENS = 0.03, 100
# While nothing pays, probing starts after so few steps at first and after twice as many each time, in the end after so
# many at least, and so seldom that what it may lose, its first step and half of another, is this share of the time.
_FIRST_INTERVAL, _INTERVAL, _SHARE, _LOST_STEPS = 8, 48, 0.02, 1.5
# While a tree pays, the next larger one is tried after so many steps at least, and so seldom that what it costs more is
# this share of the time.
_LARGER_INTERVAL, _LARGER_SHARE = 16, 0.02
# Weight of one step in the averages of a request, and in those of all requests.
_RATE, _SLOW_RATE = 1 / 24, 1 / 256
# Another size has to be so much faster before it is taken.
_BETTER = 1.03
# Costs are looked up anew after so many rows.
_ROWS = 64


class Pacing:
    """What an engine knows about the size of trees; learns from every request."""

    def __init__(self, costs: StepCosts, tokens: Mapping[int, float]) -> None:
        """`tokens` per step by size, as they were calibrated or are expected."""
        self._costs, self._calibrated = costs, {size: tokens[size] for size in costs.sizes}
        self._learnt = Gains(self._calibrated, _SLOW_RATE)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that are chosen from, 1 first."""
        return self._costs.sizes

    def begin(self, most_nodes: int | None, is_sampled: bool, is_seeded: bool) -> "LearningPace":
        """The pace of one request.

        most_nodes: bound that the request sets; None sets none.
        is_sampled: whether its tokens are drawn at a temperature.
        is_seeded:  begin with what was calibrated, so that a request's steps do not depend on the ones before it.
        """
        start = self._calibrated if is_seeded else self._learnt.tokens()
        sizes = [size for size in self.sizes if most_nodes is None or size <= most_nodes]
        tokens = {size: start[size] for size in sizes}
        return LearningPace(self._costs, is_sampled, tokens, self._calibrated, self._learnt)


class LearningPace:
    """The pace of one request."""

    def __init__(
        self,
        costs: StepCosts,
        is_sampled: bool,
        start: Mapping[int, float],
        calibrated: Mapping[int, float],
        learnt: Gains,
    ) -> None:
        """Tokens per step by size, to start with and as calibrated; `learnt` hears what is observed, too."""
        self._costs, self._is_sampled = costs, is_sampled
        self._calibrated, self._learnt = calibrated, learnt
        self._gains = Gains(start, _RATE)
        self._sizes = self._gains.sizes
        self._seconds: dict[int, float] = {}
        self._rows: int | None = None
        self._size: int | None = None  # the last choice, probing left out
        # seconds won over plain decoding so far, and what that would have taken
        self._won, self._plain = 0.0, 0.0
        self._since_probing: int | None = None  # None before the first
        self._wait: float = _FIRST_INTERVAL
        self._probed: float | None = None  # seconds won by the probing that goes on; None when none does

    def choose(self, past: int) -> int:
        """See Pace.choose."""
        if self._rows is None or past >= self._rows + _ROWS:
            self._rows = past
            self._seconds = {size: self._costs.seconds(size, past, self._is_sampled) for size in self._sizes}
        self._size = self._fastest()
        size = self._size_to_try(self._size)
        if not self._is_affordable(size):
            size = self._size
        # the one token that every step brings is counted here, because its result may come late
        self._won -= self._extra(size)
        self._plain += self._seconds[1]
        return size

    def observe(self, num_nodes: int, path: Sequence[int]) -> None:
        """See Pace.observe."""
        self._gains.observe(num_nodes, path)
        self._learnt.observe(num_nodes, path)
        won = len(path) * self._seconds[1]
        self._won += won
        self._plain += won
        if self._probed is not None and num_nodes > 1:
            extra = self._extra(self._promising())
            self._probed += won - extra
            # it ends when one step's cost is lost, not at the first step without luck
            if self._probed <= -extra:
                self._probed = None

    def _extra(self, size: int) -> float:
        """Seconds that a tree of a size costs over plain decoding."""
        return self._seconds[size] - self._seconds[1]

    def _is_affordable(self, size: int) -> bool:
        """Whether the account bears a step of this size even if nothing of it is accepted."""
        allowed = LIMIT * max(self._plain, LIMIT_TOKENS * self._seconds[1])
        return size == 1 or self._won - self._extra(size) >= -allowed

    def _fastest(self) -> int:
        """The affordable size with most tokens per second; the last choice unless another is clearly better."""
        tokens = self._gains.tokens()
        speed = {size: tokens[size] / self._seconds[size] for size in self._sizes if self._is_affordable(size)}
        best = max(speed, key=lambda size: speed[size])
        kept = self._size if self._size in speed else best
        return best if speed[best] > _BETTER * speed[kept] else kept

    def _promising(self) -> int:
        """The tree that is the fastest where as much is accepted as was calibrated."""
        return max(self._sizes[1:], key=lambda size: self._calibrated[size] / self._seconds[size])

    def _size_to_try(self, size: int) -> int:
        """A larger size than the fastest, when its turn has come, else that one.

        Larger trees are seen in no other way, and nothing is while decoding plainly.
        """
        above = self._sizes[self._sizes.index(size) + 1 :]
        if size > 1:
            self._probed, self._wait = None, _FIRST_INTERVAL
        if self._probed is not None:
            return self._promising()
        if not above:
            self._since_probing = 0
            return size
        larger = above[0] if size > 1 else self._promising()
        # a request that would begin plainly begins with trying: it may be unlike the ones before
        wait = self._wait if size == 1 else self._longest_wait(size, larger)
        is_due = size == 1 if self._since_probing is None else self._since_probing >= wait
        self._since_probing = 1 if is_due or self._since_probing is None else self._since_probing + 1
        if not is_due:
            return size
        if size == 1:
            self._probed, self._wait = 0.0, min(2 * wait, self._longest_wait(size, larger))
        return larger

    def _longest_wait(self, size: int, larger: int) -> float:
        """Steps from one probing of a larger size to the next while this one is the fastest, in the long run."""
        dearer = (self._seconds[larger] - self._seconds[size]) / self._seconds[size]
        if size > 1:
            return max(_LARGER_INTERVAL, dearer / _LARGER_SHARE)
        return max(_INTERVAL, _LOST_STEPS * dearer / _SHARE)
