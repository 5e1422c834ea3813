"""What tests of pacing need: curves with round numbers, and a model that accepts as it is told."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from medusa_core.calibration import LatencyCurve, Place
from medusa_core.pacing import Pace, Pacing, StepCosts

PLACE = Place("test", "float32", 1, "none")
# milliseconds of a step by nodes, of the kind that a small model has on a processor and a large one on a card
PROCESSOR = {1: 2.8, 2: 3.1, 4: 3.3, 8: 3.8, 16: 4.8, 32: 6.6}
CARD = {1: 3.7, 16: 3.9, 32: 4.0, 64: 4.4}
# a step that was made carelessly: whatever the tree, it costs much more than none
STEEP = {1: 5.4, 4: 8.3, 8: 8.9, 16: 10.3}
ECHOED = {1: 1.0, 2: 1.9, 4: 3.5, 8: 6.0, 16: 6.5, 32: 6.6, 64: 6.7}
COUNTED = {1: 1.0, 2: 1.4, 4: 1.7, 8: 2.0, 16: 2.2, 32: 2.3, 64: 2.5}


def curve(context: int, milliseconds: dict[int, float], is_sampled: bool = False) -> LatencyCurve:
    return LatencyCurve(PLACE, context, {size: taken / 1e3 for size, taken in milliseconds.items()}, is_sampled)


def step_costs(milliseconds: dict[int, float]) -> StepCosts:
    return StepCosts([curve(100, milliseconds)], most_tokens=9, delivery_s=0.0)


def pacing(milliseconds: dict[int, float], looks_up: bool = False) -> Pacing:
    return Pacing(step_costs(milliseconds), COUNTED, ECHOED if looks_up else None)


@dataclass(frozen=True)
class Decoded:
    """What an answer took, and what plain decoding would have taken; `sizes` of its trees."""

    seconds: float
    plain: float
    sizes: list[int]

    @property
    def slowdown(self) -> float:
        return self.seconds / self.plain


def decode(
    pace: Pace,
    costs: StepCosts,
    accepted: Iterator[Sequence[int]],
    tokens: int,
    late: int = 0,
    text: Iterator[int] | None = None,
) -> Decoded:
    """Decode behind 100 rows with trees of 64 nodes, of which `accepted` yields those on the path.

    late: how many steps later results come.
    text: the tokens that are written; None repeats none of them.
    """
    written = text if text is not None else count()
    seconds, rows, sizes, unheard = 0.0, 100, list[int](), list[tuple[int, Sequence[int], Sequence[int]]]()
    while rows < 100 + tokens:
        sizes.append(pace.choose(rows))
        seconds += costs.seconds(sizes[-1], rows, False)
        path = [node for node in next(accepted) if node < sizes[-1]]
        rows += 1 + len(path)
        unheard.append((sizes[-1], path, tuple(islice(written, 1 + len(path)))))
        if len(unheard) > late:
            pace.observe(*unheard.pop(0))
    return Decoded(seconds, sum(costs.seconds(1, row, False) for row in range(100, rows)), sizes)
