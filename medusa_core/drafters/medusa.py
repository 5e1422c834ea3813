"""Medusa heads as a drafter: one row of hidden state in, a tree of the likeliest continuations out."""

from typing import Protocol, Self

import torch
from torch import Tensor

from medusa_core.drafters.drafter import DraftState
from medusa_core.heads import DraftHeads
from medusa_core.tree import BestNodes, Branch, CandidateTree, StaticNodes, TreeTopology

__all__ = ["MedusaDrafter", "NodeChoice", "head_log_probs"]


class NodeChoice(Protocol):
    """Turns the heads' log-probabilities into a tree: BestNodes per step, or StaticNodes of one shape."""

    num_nodes: int
    max_depth: int

    def build(self, root: Tensor, log_probs: Tensor, branch: Branch | None) -> CandidateTree:
        """The tree under `root` [] for log-probabilities [K, V]."""
        ...


def head_log_probs(heads: DraftHeads, temperatures: Tensor, hidden: Tensor) -> Tensor:
    """What the heads guess, as calibrated log-probabilities [K, V] float32.

    temperatures: [K], divide each head's logits: heads are over-confident, and the joint ranking depends on it.
    hidden:       [H], the last accepted node's.
    """
    logits: Tensor = heads(hidden)
    return (logits.float() / temperatures[:, None]).log_softmax(dim=-1)


class MedusaDrafter:
    """Drafts with the heads on the last accepted node's hidden state, the only row they are needed on."""

    def __init__(self, heads: DraftHeads, nodes: NodeChoice, temperatures: Tensor) -> None:
        """Temperatures [K], see head_log_probs."""
        self.num_nodes, self.max_depth = nodes.num_nodes, nodes.max_depth
        self._heads, self._nodes, self._temperatures = heads, nodes, temperatures

    @classmethod
    def best_nodes(cls, heads: DraftHeads, temperatures: Tensor, num_nodes: int) -> Self:
        """The dynamic tree: the best nodes of every step. Temperatures [K]."""
        config = heads.config
        nodes = BestNodes(num_nodes, config.num_heads, config.vocab_size, 0, temperatures.device)
        return cls(heads, nodes, temperatures)

    @classmethod
    def static(cls, heads: DraftHeads, temperatures: Tensor, topology: TreeTopology) -> Self:
        """One fixed shape, pruned to the heads that exist. Temperatures [K]."""
        fitting = topology.pruned(heads.config.num_heads, topology.num_nodes)
        return cls(heads, StaticNodes(fitting, temperatures.device), temperatures)

    @torch.inference_mode()
    def draft(self, state: DraftState) -> CandidateTree:
        """See Drafter.draft."""
        log_probs = head_log_probs(self._heads, self._temperatures, state.hidden)
        return self._nodes.build(state.root, log_probs, branch=None)
