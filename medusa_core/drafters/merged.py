"""One tree from several drafters: the heads' best nodes and what others propose."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from medusa_core.drafters.coupling import upcoming_noise
from medusa_core.drafters.drafter import DraftState
from medusa_core.drafters.medusa import head_log_probs
from medusa_core.heads import DraftHeads
from medusa_core.memory import IMPOSSIBLE, NOTHING
from medusa_core.node_choice import BestNodes, Proposal
from medusa_core.tree import CandidateTree, TreeTopology

__all__ = ["MergedDrafter", "Proposer"]


class Proposer(Protocol):
    """Proposes continuations of the root in a tree of one shape. Pure tensors, no host synchronisation."""

    shape: TreeTopology

    def propose(self, state: DraftState) -> Proposal:
        """A token and its kind for every path of the shape; NOTHING where there is nothing to say."""
        ...


class MergedDrafter:
    """Ranks what heads and proposers offer by estimated probability; equal proposals are one node."""

    def __init__(
        self,
        heads: DraftHeads | None,
        temperatures: Tensor,
        proposers: Mapping[str, Proposer],
        nodes: BestNodes,
    ) -> None:
        """Temperatures [K] divide each head's logits; `proposers` are those `nodes` was made for, by source."""
        self.num_nodes, self.max_depth = nodes.num_nodes, nodes.max_depth
        self._heads, self._temperatures, self._nodes = heads, temperatures, nodes
        self._proposers, self._recycles = tuple(proposers.values()), "recycling" in proposers
        self._no_heads = torch.full((1, 1), IMPOSSIBLE, device=temperatures.device)

    @torch.inference_mode()
    def draft(self, state: DraftState) -> CandidateTree:
        """See Drafter.draft; needs `state.memory` where others than the heads draft."""
        num_heads = self._heads.config.num_heads if self._heads is not None else 0
        noise, log_probs = upcoming_noise(state, max(self.max_depth + 1, num_heads)), self._no_heads
        if self._heads is not None:
            log_probs = head_log_probs(self._heads, self._temperatures, state, noise)
        if not self._proposers:
            return replace(self._nodes.build(state.root, log_probs, None, None, state.is_watched), noise=noise)
        assert state.memory is not None, "how sure proposals are is remembered from step to step"
        proposed = Proposal.joined([proposer.propose(state) for proposer in self._proposers])
        if state.grammar is not None:
            is_first = self._nodes.proposed_depths == 1
            is_forbidden = is_first & ~state.grammar.allowed.index_select(0, proposed.tokens)
            proposed = replace(proposed, kinds=proposed.kinds.masked_fill(is_forbidden, NOTHING))
        log_chances = state.memory.log_chances()[proposed.kinds]
        tree = self._nodes.build(state.root, log_probs, proposed, log_chances, state.is_watched)
        return replace(tree, noise=noise)

    @torch.inference_mode()
    def learn(self, state: DraftState, tree: CandidateTree, path: Tensor, logits: Tensor) -> None:
        """See Drafter.learn; path [P], logits [N, V]."""
        if self._proposers and state.memory is not None:
            state.memory.learn(tree, path)
            if self._recycles:
                state.memory.keep_successors(tree, logits)
