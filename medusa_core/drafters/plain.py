"""Plain decoding as a drafter: the tree is its root."""

import torch

from medusa_core.drafters.drafter import DraftState
from medusa_core.tree import CandidateTree, StaticNodes, TreeTopology

__all__ = ["RootOnly"]


class RootOnly:
    """Proposes nothing, so that one step decides exactly one token."""

    num_nodes = 1
    max_depth = 0

    def __init__(self, device: torch.device) -> None:
        self._nodes = StaticNodes(TreeTopology.root_only(), device)
        self._no_heads = torch.zeros(0, 1, device=device)

    def draft(self, state: DraftState) -> CandidateTree:
        """The root alone."""
        return self._nodes.build(state.root, self._no_heads, branch=None)
