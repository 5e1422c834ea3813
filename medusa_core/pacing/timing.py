"""Times steps at the start, as many as a short while allows."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from medusa_core.calibration import LatencyCurve, Place

__all__ = ["Situation", "TimingPlan", "time_steps"]

# Steps of a tree are assumed to take so many times the plain one, before any was timed.
_LARGER = 2.5
# Times as many plain steps are timed: they are short, and every tree is compared with them.
_PLAIN = 4


@dataclass(frozen=True)
class Situation:
    """Where steps are timed: behind so many rows of the cache, with tokens drawn at a temperature or greedily."""

    rows: int
    is_sampled: bool = False


@dataclass(frozen=True)
class TimingPlan:
    """Which steps are timed.

    sizes:      nodes of the trees, 1 among them.
    situations: those that tell most first, an ordinary one at the start.
    limit_s:    no round begins that would end later than this, or than `steps` plain steps where those take longer.
    rounds:     visits to each size in each situation, interleaved, at most; there is one at least.
    """

    sizes: tuple[int, ...]
    situations: tuple[Situation, ...]
    limit_s: float = 1.5
    steps: int = 10
    rounds: int = 5

    def fitting(self, plain_step_s: float) -> tuple[tuple[int, ...], tuple[Situation, ...], int]:
        """Sizes, situations and timed steps of a visit of which there is time for a round at least, or the fewest."""
        few = (self.sizes[0], *self.sizes[2::2]) if len(self.sizes) > 2 else self.sizes
        fewest = tuple(dict.fromkeys((1, few[len(few) // 2], few[-1])))
        choices = [
            (self.sizes, self.situations, 2),
            (self.sizes, self.situations, 1),
            (few, self.situations, 1),
            (few, self.situations[:1], 1),
            (fewest, self.situations[:1], 1),
        ]
        for sizes, situations, steps in choices:
            taken = len(sizes) * len(situations) * 2 * steps * _LARGER * plain_step_s
            if taken <= self.limit(plain_step_s):
                return sizes, situations, steps
        return choices[-1]

    def limit(self, plain_step_s: float) -> float:
        """Seconds that timing may take."""
        return max(self.limit_s, self.steps * plain_step_s)


def time_steps(
    visit: Callable[[int, Situation], Iterator[float]],
    place: Place,
    plan: TimingPlan,
    plain_step_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[LatencyCurve]:
    """Seconds of a step by tree nodes in each situation: nearly the least, since others' work only ever adds.

    visit:        starts decoding with so many nodes in a situation, and yields the seconds of each step.
    plain_step_s: of a plain step, about.
    """
    sizes, situations, steps = plan.fitting(plain_step_s)
    found: dict[tuple[int, Situation], list[float]] = {(size, at): [] for at in situations for size in sizes}
    started = round_started = clock()
    for _ in range(plan.rounds):
        for (size, situation), seconds in found.items():
            count = steps * _PLAIN if size == 1 else steps
            # as many go before them untimed, and pay for what the last visit left in the processor's caches
            seconds += islice(visit(size, situation), count, 2 * count)
        now = clock()
        if now - started + (now - round_started) > plan.limit(plain_step_s):
            break
        round_started = now
    undisturbed = {key: sorted(seconds)[len(seconds) // 8] for key, seconds in found.items()}
    return [
        LatencyCurve(place, at.rows, {size: undisturbed[size, at] for size in sizes}, at.is_sampled)
        for at in situations
    ]
