from collections.abc import Sequence

import torch

from medusa_core.config import SpeculationParams
from medusa_core.drafters import Asked, Drafter, DrafterSource, Paced
from tests.cast import CPU, random_heads

HEADS = random_heads(torch.randn(23, 16, generator=torch.Generator().manual_seed(0)), 3)


class Counting:
    """A source that remembers what it was asked for."""

    def __init__(self) -> None:
        self._source = DrafterSource(HEADS, torch.ones(3), 8, 8, True, CPU)
        self.asked: list[Asked] = []

    def get(self, asked: Asked) -> Drafter:
        self.asked.append(asked)
        return self._source.get(asked)


class Script:
    """A pace that was written down beforehand."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes, self.heard = list(sizes), list[tuple[int, Sequence[int], Sequence[int]]]()

    def choose(self, past: int, forced: int = 0) -> int:
        return self._sizes.pop(0)

    def observe(self, num_nodes: int, path: Sequence[int], tokens: Sequence[int]) -> None:
        self.heard.append((num_nodes, path, tokens))


def test_each_step_gets_a_drafter_of_the_size_that_the_pace_says_and_each_size_is_made_once() -> None:
    source, pace = Counting(), Script([4, 1, 4, 8, 1])
    paced = Paced(source, Asked(SpeculationParams(max_nodes=64), (), 3, False), pace)

    assert [paced.next(past).num_nodes for past in range(5)] == [4, 1, 4, 8, 1]
    assert [asked.speculation.max_nodes for asked in source.asked] == [4, 1, 8]


def test_the_pace_hears_what_became_of_each_tree() -> None:
    pace = Script([4])
    Paced(Counting(), Asked(SpeculationParams(), (), 3, False), pace).observe(4, [1, 3], [7, 8, 9])

    assert pace.heard == [(4, [1, 3], [7, 8, 9])]
