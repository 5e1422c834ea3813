"""The drafter of each step of one request: of whatever size pays."""

from collections.abc import Sequence
from dataclasses import replace

from medusa_core.drafters.drafter import Drafter
from medusa_core.drafters.source import Asked, Drafters
from medusa_core.pacing import Pace

__all__ = ["Paced"]


class Paced:
    """Asks a pace for the size of each step's tree, and the source for a drafter of it; what it got is kept."""

    def __init__(self, drafters: Drafters, asked: Asked, pace: Pace) -> None:
        self._drafters, self._asked, self._pace = drafters, asked, pace
        self._of_size: dict[int, Drafter] = {}

    def next(self, past: int, forced: int = 0) -> Drafter:
        """The drafter of the step that is issued next, behind about `past` rows; `forced` as of Pace.choose."""
        num_nodes = self._pace.choose(past, forced)
        if num_nodes not in self._of_size:
            speculation = replace(self._asked.speculation, max_nodes=num_nodes)
            self._of_size[num_nodes] = self._drafters.get(replace(self._asked, speculation=speculation))
        return self._of_size[num_nodes]

    def observe(self, num_nodes: int, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Of a tree of so many nodes these were accepted, root left out; what it brought are `tokens`."""
        self._pace.observe(num_nodes, path, tokens)
