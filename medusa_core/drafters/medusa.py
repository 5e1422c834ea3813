"""Medusa heads as a drafter: one row of hidden state in, a tree of the likeliest continuations out."""

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from medusa_core.drafters.coupling import perturbed, upcoming_noise
from medusa_core.drafters.drafter import DraftState
from medusa_core.drafters.grammar import only_allowed
from medusa_core.heads import DraftHeads
from medusa_core.node_choice import StaticNodes
from medusa_core.tree import CandidateTree, TreeTopology

__all__ = ["MedusaDrafter", "head_log_probs"]


def head_log_probs(heads: DraftHeads, temperatures: Tensor, state: DraftState, noise: Tensor | None) -> Tensor:
    """What the heads guess behind `state.hidden` [H], as calibrated log-probabilities [K, V] float32.

    temperatures: [K], divide each head's logits: heads are over-confident, and the joint ranking depends on it.
    noise:        [R, W], of all tokens at the positions behind the root, see upcoming_noise.

    Where tokens are drawn with noise, the guess is of the token that this very noise will pick: coupled drafting.
    Where a grammar is followed, the first head guesses only what that allows; what it allows further on depends on
    the guesses themselves, and is found out when they are verified.
    """
    logits: Tensor = heads(state.hidden).float() / temperatures[:, None]
    if state.sampler is not None and noise is not None:
        logits = perturbed(logits, heads, state.sampler, noise)
    log_probs = logits.log_softmax(dim=-1)
    return log_probs if state.grammar is None else only_allowed(log_probs, heads.of_tokens(state.grammar.allowed))


class MedusaDrafter:
    """Drafts one fixed shape with the heads on the last accepted node's hidden state, the only row they see."""

    def __init__(self, heads: DraftHeads, nodes: StaticNodes, temperatures: Tensor) -> None:
        """Temperatures [K], see head_log_probs."""
        self.num_nodes, self.max_depth = nodes.num_nodes, nodes.max_depth
        self._heads, self._nodes, self._temperatures = heads, nodes, temperatures

    @classmethod
    def static(cls, heads: DraftHeads, temperatures: Tensor, topology: TreeTopology) -> Self:
        """The shape pruned to the heads that exist. Temperatures [K]."""
        fitting = topology.pruned(heads.config.num_heads, topology.num_nodes)
        return cls(heads, StaticNodes(fitting, temperatures.device, heads.token_ids), temperatures)

    @torch.inference_mode()
    def draft(self, state: DraftState) -> CandidateTree:
        """See Drafter.draft."""
        noise = upcoming_noise(state, max(self.max_depth + 1, self._heads.config.num_heads))
        log_probs = head_log_probs(self._heads, self._temperatures, state, noise)
        return replace(self._nodes.build(state.root, log_probs, state.is_watched), noise=noise)

    def learn(self, state: DraftState, tree: CandidateTree, path: Tensor, logits: Tensor) -> None:
        """See Drafter.learn; path [P], logits [N, V]. Nothing here changes with what is accepted."""
