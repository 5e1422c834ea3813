"""One tree from several drafters: the heads' best nodes and the branches that others propose."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from medusa_core.drafters.drafter import DraftState
from medusa_core.drafters.medusa import head_log_probs
from medusa_core.heads import DraftHeads
from medusa_core.node_choice import IMPOSSIBLE, BestNodes, Branch
from medusa_core.tree import CandidateTree

__all__ = ["BranchDrafter", "MergedDrafter"]


class BranchDrafter(Protocol):
    """Proposes one continuation of the root. Pure tensors, no host synchronisation."""

    def propose(self, state: DraftState) -> Branch:
        """A branch of the depth the drafter was made for; IMPOSSIBLE from where it has nothing to say."""
        ...


class MergedDrafter:
    """Ranks what heads and branches propose by estimated log-probability; equal proposals are one node."""

    def __init__(
        self,
        heads: DraftHeads | None,
        temperatures: Tensor,
        branches: Mapping[str, BranchDrafter],
        nodes: BestNodes,
    ) -> None:
        """Temperatures [K] divide each head's logits; `branches` are those `nodes` was made for, by source."""
        self.num_nodes, self.max_depth = nodes.num_nodes, nodes.max_depth
        self._heads, self._temperatures, self._nodes = heads, temperatures, nodes
        self._branches = tuple(branches.values())
        self._no_heads = torch.full((1, 1), IMPOSSIBLE, device=temperatures.device)

    @torch.inference_mode()
    def draft(self, state: DraftState) -> CandidateTree:
        """See Drafter.draft."""
        log_probs = self._no_heads
        if self._heads is not None:
            log_probs = head_log_probs(self._heads, self._temperatures, state)
        branches = [branch.propose(state) for branch in self._branches]
        if state.grammar is not None:
            branches = [_only_allowed(branch, state.grammar.allowed) for branch in branches]
        return self._nodes.build(state.root, log_probs, branches)


def _only_allowed(branch: Branch, allowed: Tensor) -> Branch:
    """The branch, impossible from its start when its first token is not in `allowed` [V] bool."""
    # an index of no dimension would be read by the host
    is_forbidden = ~allowed.index_select(0, branch.tokens[:1])
    return replace(branch, log_probs=branch.log_probs.masked_fill(is_forbidden, IMPOSSIBLE))
