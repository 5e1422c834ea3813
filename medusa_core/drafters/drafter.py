"""What a drafter is given and what it must return."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from medusa_core.tree import CandidateTree

__all__ = ["DraftState", "Drafter"]


@dataclass(frozen=True)
class DraftState:
    """All that a step needs to know of the sequence so far, on the device.

    root:    [] int64, the token already decided and emitted, not yet in the cache.
    hidden:  [H], last hidden state of the last committed token.
    past:    [] int64, committed rows, which is also the root's absolute position.
    counts:  [V] float32, how often each token stands in the answer, root included; None when no penalty asks for it.
    history: [S] int64, the token of each position up to the root's, then anything; only lookup needs it.
    """

    root: Tensor
    hidden: Tensor
    past: Tensor
    counts: Tensor | None = None
    history: Tensor | None = None


class Drafter(Protocol):
    """Proposes a tree of continuations. Pure tensors, no host synchronisation."""

    num_nodes: int
    max_depth: int

    def draft(self, state: DraftState) -> CandidateTree:
        """A tree of `num_nodes` slots under `state.root`, no node deeper than `max_depth`."""
        ...
