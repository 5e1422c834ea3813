"""The size with most tokens per second at every step, and plain decoding where no tree pays.

Tokens per step are learnt from what is accepted; seconds are those that were measured once, so that what else the
machine does changes no choice. However wrong the averages are, an account of the seconds that trees won and lost keeps
a request from being slower than plain decoding by more than LIMIT.

Where the sequence repeats itself lookup foresees what follows, often as deep as a tree goes, and a few steps later
nothing. One average would be right in neither place, so steps are told apart by how much of an echo was heard when
they began. That is known on the host and costs nothing, also while decoding plainly: an echo that goes on has foretold
rightly, with or without a tree. The more of it was heard, the more of what trees may lose is there to try it.

Where a grammar leaves no choice nothing need be learnt: a tree that holds the span brings it for certain.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from medusa_core.pacing.account import LIMIT, LIMIT_TOKENS, Account
from medusa_core.pacing.costs import StepCosts
from medusa_core.pacing.echo import STRENGTHS, Echo
from medusa_core.pacing.gains import Gains

__all__ = ["LIMIT", "LIMIT_TOKENS", "LearningPace", "Pacing"]

# Of what trees may lose, so much is left for the steps behind the stronger echoes.
_KEPT = 0.5
# While nothing pays, probing starts after so few steps at first and after twice as many each time, in the end after so
# many at least, and so seldom that what it may lose, its first step and half of another, is this share of the time.
_FIRST_INTERVAL, _INTERVAL, _SHARE, _LOST_STEPS = 8, 48, 0.02, 1.5
# While a tree pays, the next larger one is tried after so many steps at least, and so seldom that what it costs more is
# this share of the time.
_LARGER_INTERVAL, _LARGER_SHARE = 16, 0.02
# Weight of one step in the averages of a request, and in those of all requests.
_RATE, _SLOW_RATE = 1 / 24, 1 / 256
# A tree behind a plain step costs so many times more over plain than one behind a tree, as which it was timed: it finds
# the processor's caches filled with what plain decoding needs, and leaves them filled with what it does not need.
_ALONE = 1.2
# Another size has to be so much faster before it is taken.
_BETTER = 1.03
# Costs are looked up anew after so many rows. They grow with them: a tree's is taken at the end of those rows, a plain
# step's at their beginning, so that the account never errs in favour of trees.
_ROWS = 16


class Pacing:
    """What an engine knows about the size of trees; learns from every request."""

    def __init__(self, costs: StepCosts, tokens: Mapping[int, float], echoed: Mapping[int, float] | None) -> None:
        """Tokens per step by size, as they were calibrated or are expected.

        echoed: the same where the sequence repeats itself; None where nobody looks up what it repeats.
        """
        self._costs = costs
        known = [tokens] if echoed is None else [tokens if strength == 0 else echoed for strength in STRENGTHS]
        self._calibrated = [{size: by[size] for size in costs.sizes} for by in known]
        self._learnt = [Gains(by, _SLOW_RATE) for by in self._calibrated]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that are chosen from, 1 first."""
        return self._costs.sizes

    def begin(
        self, most_nodes: int | None, is_sampled: bool, is_seeded: bool, texts: Sequence[Sequence[int]]
    ) -> "LearningPace":
        """The pace of one request.

        most_nodes: bound that the request sets; None sets none.
        is_sampled: whether its tokens are drawn at a temperature.
        is_seeded:  begin with what was calibrated, so that a request's steps do not depend on the ones before it.
        texts:      what lookup may find, the sequence so far last.
        """
        sizes = [size for size in self.sizes if most_nodes is None or size <= most_nodes]
        habits: list[_Habit] = []
        for calibrated, learnt in zip(self._calibrated, self._learnt, strict=True):
            start = calibrated if is_seeded else learnt.tokens()
            # all of it is there where the strongest echo is heard, or where nobody listens
            share = max(1.0 - _KEPT, (len(habits) + 1) / len(self._learnt))
            habits.append(_Habit({size: start[size] for size in sizes}, calibrated, learnt, share))
        return LearningPace(self._costs, is_sampled, habits, Echo(texts) if len(habits) > 1 else None)


class _Habit:
    """What one request does in one kind of place, and what it has learnt there."""

    def __init__(
        self, start: Mapping[int, float], calibrated: Mapping[int, float], learnt: Gains, share: float
    ) -> None:
        """Tokens per step by size, to start with and as calibrated; `learnt` hears what is observed, too.

        share: of what trees may lose, that this place may use up.
        """
        self.calibrated, self.learnt, self.share = calibrated, learnt, share
        self.gains = Gains(start, _RATE)
        self.size: int | None = None  # the last choice, probing left out
        self.since_probing: int | None = None  # None before the first
        self.wait: float = _FIRST_INTERVAL
        self.probed: float | None = None  # seconds won by the probing that goes on; None when none does
        self._ranked: Mapping[int, float] = {}
        self._ranked_by: tuple[object, object] = None, None

    def speeds(self, seconds: Mapping[int, float]) -> Mapping[int, float]:
        """Tokens per second by size, the fastest first, where steps take these seconds.

        Most steps change neither, and what is asked between two of them is time in which nothing is computed.
        """
        tokens = self.gains.tokens()
        if self._ranked_by[0] is not tokens or self._ranked_by[1] is not seconds:
            speed = {size: tokens[size] / taken for size, taken in seconds.items()}
            self._ranked = dict(sorted(speed.items(), key=lambda ranked: ranked[1], reverse=True))
            self._ranked_by = tokens, seconds
        return self._ranked

    def observe(self, num_nodes: int, path: Sequence[int]) -> None:
        """Of a tree of so many nodes these were accepted, root left out."""
        self.gains.observe(num_nodes, path)
        self.learnt.observe(num_nodes, path)


class LearningPace:
    """The pace of one request."""

    def __init__(self, costs: StepCosts, is_sampled: bool, habits: Sequence[_Habit], echo: Echo | None) -> None:
        """What is done in each kind of place, by the strength of the echo there; without one there is only one."""
        self._costs, self._is_sampled = costs, is_sampled
        self._habits, self._echo = habits, echo
        self._sizes = habits[0].gains.sizes
        self._seconds: dict[int, float] = {}
        self._rows: int | None = None
        self._first_s = 0.0  # a plain step where the answer begins
        self._size = 1  # of the last step
        self._account = Account()
        # of the steps whose results are not known yet; None behind which a span was forced, which teaches nothing
        self._begun: deque[_Habit | None] = deque()

    def choose(self, past: int, forced: int = 0) -> int:
        """See Pace.choose."""
        if self._rows is None or past >= self._rows + _ROWS:
            rows = {size: past + _ROWS if size > 1 else past for size in self._sizes}
            self._seconds = {size: self._costs.seconds(size, rows[size], self._is_sampled) for size in self._sizes}
            self._first_s = self._first_s if self._rows is not None else self._seconds[1]
            self._rows = past
        habit = self._habits[self._echo.strength if self._echo is not None else 0]
        habit.size = self._fastest(habit)
        certain = self._fastest_for_certain(forced)
        if certain > 1:
            size = max(certain, habit.size)
        else:
            size = self._size_to_try(habit, habit.size)
            if not self._is_affordable(habit, size):
                size = habit.size
        # the one token that every step brings is counted here, because its result may come late
        self._account.charge(self._extra(size), self._seconds[1])
        self._size = size
        self._begun.append(habit if certain == 1 else None)
        return size

    def observe(self, num_nodes: int, path: Sequence[int], tokens: Sequence[int]) -> None:
        """See Pace.observe."""
        habit = self._begun.popleft()
        if habit is not None:
            habit.observe(num_nodes, path)
        if self._echo is not None:
            self._echo.extend(tokens)
        won = len(path) * self._seconds[1]
        self._account.credit(won)
        if habit is not None and habit.probed is not None and num_nodes > 1:
            extra = self._extra(self._promising(habit))
            habit.probed += won - extra
            # it ends when one step's cost is lost, not at the first step without luck
            if habit.probed <= -extra:
                habit.probed = None

    def _extra(self, size: int) -> float:
        """Seconds that a tree of a size costs over plain decoding, behind the last step."""
        extra = self._seconds[size] - self._seconds[1]
        return _ALONE * extra if self._size == 1 else extra

    def _is_affordable(self, habit: _Habit, size: int) -> bool:
        """Whether the account bears a step of this size even if nothing of it is accepted."""
        return size == 1 or self._account.affords(self._extra(size), self._first_s, habit.share)

    def _fastest_for_certain(self, forced: int) -> int:
        """The size with most tokens per second if nothing but a forced span is accepted."""
        if forced == 0:
            return 1
        most = min(forced, self._costs.most_tokens - 1)
        return max(self._sizes, key=lambda size: (1 + min(most, size - 1)) / self._seconds[size])

    def _fastest(self, habit: _Habit) -> int:
        """The affordable size with most tokens per second; the last choice unless another is clearly better."""
        speed = habit.speeds(self._seconds)
        best = next(size for size in speed if self._is_affordable(habit, size))
        kept = habit.size
        if kept is None or kept == best or not self._is_affordable(habit, kept):
            return best
        return best if speed[best] > _BETTER * speed[kept] else kept

    def _promising(self, habit: _Habit) -> int:
        """The tree that is the fastest where as much is accepted as was calibrated."""
        return max(self._sizes[1:], key=lambda size: habit.calibrated[size] / self._seconds[size])

    def _size_to_try(self, habit: _Habit, size: int) -> int:
        """A larger size than the fastest, when its turn has come, else that one.

        Larger trees are seen in no other way, and nothing is while decoding plainly.
        """
        above = self._sizes[self._sizes.index(size) + 1 :]
        if size > 1:
            habit.probed, habit.wait = None, _FIRST_INTERVAL
        if habit.probed is not None:
            return self._promising(habit)
        if not above:
            habit.since_probing = 0
            return size
        # a request that would begin plainly begins with trying: it may be unlike the ones before
        wait = habit.wait if size == 1 else self._longest_wait(size, above[0])
        is_due = size == 1 if habit.since_probing is None else habit.since_probing >= wait
        habit.since_probing = 1 if is_due or habit.since_probing is None else habit.since_probing + 1
        if not is_due:
            return size
        if size > 1:
            return above[0]
        promising = self._promising(habit)
        habit.probed, habit.wait = 0.0, min(2 * wait, self._longest_wait(size, promising))
        return promising

    def _longest_wait(self, size: int, larger: int) -> float:
        """Steps from one probing of a larger size to the next while this one is the fastest, in the long run."""
        dearer = (self._seconds[larger] - self._seconds[size]) / self._seconds[size]
        if size > 1:
            return max(_LARGER_INTERVAL, dearer / _LARGER_SHARE)
        return max(_INTERVAL, _LOST_STEPS * dearer / _SHARE)
