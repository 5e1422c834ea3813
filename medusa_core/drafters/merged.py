"""One tree from several drafters: the heads' best nodes and the branch that prompt lookup finds."""

from typing import Self

import torch
from torch import Tensor

from medusa_core.drafters.drafter import DraftState
from medusa_core.drafters.medusa import head_log_probs
from medusa_core.drafters.prompt_lookup import PromptLookup
from medusa_core.heads import DraftHeads
from medusa_core.tree import BestNodes, CandidateTree

__all__ = ["MergedDrafter"]


class MergedDrafter:
    """Ranks what heads and lookup propose by estimated log-probability; equal proposals are one node."""

    def __init__(self, heads: DraftHeads, temperatures: Tensor, lookup: PromptLookup, nodes: BestNodes) -> None:
        """Temperatures [K] divide each head's logits; `nodes` has room for branches of the lookup's depth."""
        self.num_nodes, self.max_depth = nodes.num_nodes, nodes.max_depth
        self._heads, self._temperatures, self._lookup, self._nodes = heads, temperatures, lookup, nodes

    @classmethod
    def best_nodes(cls, heads: DraftHeads, temperatures: Tensor, num_nodes: int, lookup_depth: int) -> Self:
        """The best `num_nodes` nodes of every step, lookup reaching `lookup_depth` deep. Temperatures [K]."""
        config, device = heads.config, temperatures.device
        depth = min(lookup_depth, num_nodes - 1)
        nodes = BestNodes(num_nodes, config.num_heads, config.vocab_size, depth, device)
        return cls(heads, temperatures, PromptLookup(depth, device), nodes)

    @torch.inference_mode()
    def draft(self, state: DraftState) -> CandidateTree:
        """See Drafter.draft; needs `state.history`."""
        assert state.history is not None, "the engine keeps the history of a sequence that is looked up in"
        branch = self._lookup.look_up(state.history, state.past)
        return self._nodes.build(state.root, head_log_probs(self._heads, self._temperatures, state.hidden), branch)
