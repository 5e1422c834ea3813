"""Which part of a verified tree becomes output: the Protocol every rule keeps, and the value it returns."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medusa_core.tree import CandidateTree

__all__ = ["Acceptance", "AcceptanceRule", "deepest_path"]


@dataclass(frozen=True)
class Acceptance:
    """What one step emits, on the device.

    path:   [P] int64, accepted nodes, root first; P = max_depth + 1, entries from `count` on are 0.
    tokens: [P] int64, emitted tokens: the accepted drafts, then the bonus at count - 1; entries behind are garbage.
    count:  [] int64, nodes on the path, which is also the number of emitted tokens (>= 1).
    """

    path: Tensor
    tokens: Tensor
    count: Tensor

    @property
    def last(self) -> Tensor:
        """[1] int64, the deepest accepted node, whose draw is the bonus."""
        return self.path.gather(0, (self.count - 1).reshape(1))

    @property
    def bonus(self) -> Tensor:
        """[] int64, the token decided by the deepest accepted node: the next root."""
        return self.tokens.gather(0, (self.count - 1).reshape(1))[0]


class AcceptanceRule(Protocol):
    """Decides a verified tree. Pure: no state changes, no host synchronisation."""

    def accept(self, tree: CandidateTree, logits: Tensor, past: Tensor) -> Acceptance:
        """Choose the accepted path.

        logits: [N, V], the model's at every node, adjusted as the request asks.
        past:   [] int64, absolute position of the root.
        """
        ...


def deepest_path(tree: CandidateTree, alive: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes of one living chain by depth, and how many they are.

    alive: [N] bool, living nodes, at most one per depth, the root among them.

    Returns path [P] int64 (0 behind the end) and count [] int64.
    """
    depths = torch.arange(tree.max_depth + 1, device=alive.device)
    # argmax of a 0/1 row is its first 1, and 0 for a row without any
    path = ((tree.depth == depths[:, None]) & alive).long().argmax(dim=1)
    return path, alive.sum()
