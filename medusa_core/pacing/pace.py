"""The seam between a request and whoever chooses the size of its trees."""

from collections.abc import Sequence
from typing import Protocol

__all__ = ["FixedPace", "Pace"]


class Pace(Protocol):
    """Chooses the size of each step's tree in one request."""

    def choose(self, past: int, forced: int = 0) -> int:
        """N of the step that is issued next, root included, behind `past` rows.

        forced: tokens behind the root that a grammar leaves no choice of, and a large enough tree brings for certain.
        """
        ...

    def observe(self, num_nodes: int, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Of a tree of so many ranked nodes these were accepted, root left out; what it brought are `tokens`.

        Called for every step that was chosen for, in the same order.
        """
        ...


class FixedPace:
    """Every step's tree has one size."""

    def __init__(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes

    def choose(self, past: int, forced: int = 0) -> int:
        """See Pace.choose."""
        return self._num_nodes

    def observe(self, num_nodes: int, path: Sequence[int], tokens: Sequence[int]) -> None:
        """See Pace.observe; there is nothing to learn."""
