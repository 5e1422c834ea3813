"""Plain decoding as a drafter: the tree is its root."""

from dataclasses import replace

import torch
from torch import Tensor

from medusa_core.drafters.drafter import DraftState
from medusa_core.tree import CandidateTree, Ranking, TreeTopology

__all__ = ["RootOnly"]


class RootOnly:
    """Proposes nothing, so that one step decides exactly one token."""

    num_nodes = 1
    max_depth = 0

    def __init__(self, device: torch.device) -> None:
        token = torch.zeros(1, dtype=torch.long, device=device)
        self._tree = CandidateTree.from_topology(TreeTopology.root_only(), token)
        self._ranking = Ranking(torch.zeros(1, device=device), token)

    def draft(self, state: DraftState) -> CandidateTree:
        """The root alone."""
        ranking = self._ranking if state.is_watched else None
        return replace(self._tree, tokens=state.root.reshape(1), ranking=ranking)

    def learn(self, state: DraftState, tree: CandidateTree, path: Tensor, logits: Tensor) -> None:
        """See Drafter.learn; path [P], logits [N, V]. Nothing here changes with what is accepted."""
