"""Times steps at the start, as many as a short while allows."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from medusa_core.calibration import LatencyCurve, Place

__all__ = ["TimingPlan", "time_steps"]

# Steps of a tree are assumed to take so many times the plain one, before any was timed.
_LARGER = 1.8


@dataclass(frozen=True)
class TimingPlan:
    """Which steps are timed.

    sizes:    nodes of the trees, 1 among them.
    contexts: rows of the cache, the shorter first.
    limit_s:  no round begins that would end later than this, or than `steps` plain steps where those take longer.
    rounds:   visits to each size at each context, interleaved, at most; there is one at least.
    """

    sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    limit_s: float = 1.5
    steps: int = 10
    rounds: int = 5

    def fitting(self, plain_step_s: float) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Sizes, contexts and timed steps of a visit of which there is time for one round at least, or the fewest."""
        few = tuple(size for size in self.sizes if size in (1, *self.sizes[2::2]))
        fewest = tuple(dict.fromkeys((1, few[len(few) // 2], few[-1])))
        choices = [
            (self.sizes, self.contexts, 2),
            (self.sizes, self.contexts, 1),
            (few, self.contexts, 1),
            (few, self.contexts[:1], 1),
            (fewest, self.contexts[:1], 1),
        ]
        for sizes, contexts, steps in choices:
            if len(sizes) * len(contexts) * (steps + 1) * _LARGER * plain_step_s <= self.limit(plain_step_s):
                return sizes, contexts, steps
        return choices[-1]

    def limit(self, plain_step_s: float) -> float:
        """Seconds that timing may take."""
        return max(self.limit_s, self.steps * plain_step_s)


def time_steps(
    visit: Callable[[int, int], Iterator[float]],
    place: Place,
    plan: TimingPlan,
    plain_step_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[LatencyCurve]:
    """Seconds of a step by tree nodes at each context: nearly the least, since others' work only ever adds.

    visit:        starts decoding with so many nodes behind so many rows, and yields the seconds of each step.
    plain_step_s: of a plain step, about.
    """
    sizes, contexts, steps = plan.fitting(plain_step_s)
    found: dict[tuple[int, int], list[float]] = {(size, rows): [] for rows in contexts for size in sizes}
    started = round_started = clock()
    for _ in range(plan.rounds):
        for (size, rows), seconds in found.items():
            # the first step of each visit pays for what the last visit left in the processor's caches
            seconds += list(islice(visit(size, rows), steps + 1))[1:]
        now = clock()
        if now - started + (now - round_started) > plan.limit(plain_step_s):
            break
        round_started = now
    undisturbed = {key: sorted(seconds)[len(seconds) // 8] for key, seconds in found.items()}
    return [LatencyCurve(place, rows, {size: undisturbed[size, rows] for size in sizes}) for rows in contexts]
