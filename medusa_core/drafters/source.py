"""Which drafter serves which request."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medusa_core.config import SpeculationParams
from medusa_core.drafters.drafter import Drafter
from medusa_core.drafters.grammar import GrammarBranch
from medusa_core.drafters.medusa import MedusaDrafter
from medusa_core.drafters.merged import MergedDrafter, Proposer
from medusa_core.drafters.plain import RootOnly
from medusa_core.drafters.prediction import PredictionBranch
from medusa_core.drafters.prompt_lookup import PromptLookup
from medusa_core.drafters.recycling import Recycling, recycling_shape
from medusa_core.heads import DraftHeads
from medusa_core.node_choice import BestNodes
from medusa_core.tree import TreeTopology

__all__ = ["Asked", "DrafterSource", "Drafters"]


# Smaller trees are full of what heads and lookup say. On the demo model, 30 held-out prompts, recycling brings 1.6, 3.2
# and 6.1 % more tokens per step with 8, 16 and 32 nodes.
_LEAST_RECYCLING_NODES = 16


@dataclass(frozen=True)
class Asked:
    """What of a request decides who drafts for it.

    prediction:     tokens the client expects; empty when it expects nothing.
    first_position: absolute position of the answer's first token.
    has_grammar:    whether the answer follows one.
    """

    speculation: SpeculationParams
    prediction: tuple[int, ...]
    first_position: int
    has_grammar: bool


class Drafters(Protocol):
    """Where the engine finds the drafter a request asks for."""

    def get(self, asked: Asked) -> Drafter:
        """The drafter for one request."""
        ...


class DrafterSource:
    """Puts together the drafter for each way a request may speculate; what is costly about one is kept."""

    def __init__(
        self,
        heads: DraftHeads | None,
        temperatures: Tensor,
        tree_nodes: int,
        max_depth: int,
        has_lookup: bool,
        device: torch.device,
        recycled_vocab: int | None = None,
    ) -> None:
        """Heads with their temperatures [K], the most nodes of a tree, the depth of branches, whether one looks up.

        recycled_vocab: size of the vocabulary whose tokens are recycled; None recycles none.
        """
        self._heads, self._temperatures, self._device = heads, temperatures, device
        self._tree_nodes, self._max_depth, self._has_lookup = tree_nodes, max_depth, has_lookup
        self._recycled_vocab = recycled_vocab
        self._plain = RootOnly(device)
        self._chains: dict[int, Drafter] = {}
        self._trees: dict[tuple[int, bool], Drafter] = {}
        self._nodes: dict[tuple[int, tuple[str, ...]], BestNodes] = {}

    def get(self, asked: Asked) -> Drafter:
        """The drafter for one request: plain decoding with one node, or where nobody has anything to propose."""
        wanted = asked.speculation.max_nodes if asked.speculation.max_nodes is not None else self._tree_nodes
        num_nodes = min(wanted, self._tree_nodes)
        mode = asked.speculation.mode
        if mode == "off" or num_nodes == 1:
            return self._plain
        return self._chain(num_nodes) if mode == "chain" else self._tree(num_nodes, asked)

    def _chain(self, num_nodes: int) -> Drafter:
        """The likeliest token of each head."""
        if self._heads is None:
            return self._plain
        if num_nodes not in self._chains:
            topology = TreeTopology.chain(num_nodes - 1)
            self._chains[num_nodes] = MedusaDrafter.static(self._heads, self._temperatures, topology)
        return self._chains[num_nodes]

    def _tree(self, num_nodes: int, asked: Asked) -> Drafter:
        """Everybody who may have something to say, in one tree; only a prediction is one request's own."""
        depth = min(self._max_depth, num_nodes - 1)
        if not asked.prediction:
            key = num_nodes, asked.has_grammar
            if key not in self._trees:
                self._trees[key] = self._merged(num_nodes, self._proposers(num_nodes, depth, asked.has_grammar))
            return self._trees[key]
        prediction = PredictionBranch(asked.prediction, asked.first_position, depth, self._device)
        others = self._proposers(num_nodes, depth, asked.has_grammar)
        return self._merged(num_nodes, {"prediction": prediction, **others})

    def _proposers(self, num_nodes: int, depth: int, has_grammar: bool) -> dict[str, Proposer]:
        found: dict[str, Proposer] = {}
        if has_grammar:
            found["grammar"] = GrammarBranch(depth)
        if self._has_lookup:
            found["lookup"] = PromptLookup(depth, self._device)
        is_worthwhile = self._heads is None or num_nodes >= _LEAST_RECYCLING_NODES
        if self._recycled_vocab is not None and is_worthwhile:
            found["recycling"] = Recycling(recycling_shape(num_nodes, depth, self._recycled_vocab), self._device)
        return found

    def _merged(self, num_nodes: int, proposers: dict[str, Proposer]) -> Drafter:
        if self._heads is None and not proposers:
            return self._plain
        key = num_nodes, tuple(proposers)
        if key not in self._nodes:
            num_heads, vocab_size, token_ids = 0, 1, None
            if self._heads is not None:
                num_heads, vocab_size = self._heads.config.num_heads, self._heads.config.vocab_size
                token_ids = self._heads.token_ids
            shapes = {name: proposer.shape for name, proposer in proposers.items()}
            self._nodes[key] = BestNodes(num_nodes, num_heads, vocab_size, shapes, self._device, token_ids)
        return MergedDrafter(self._heads, self._temperatures, proposers, self._nodes[key])
