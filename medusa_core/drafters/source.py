"""Which drafter serves which request."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from medusa_core.config import SpeculationMode, SpeculationParams
from medusa_core.drafters.drafter import Drafter
from medusa_core.drafters.medusa import MedusaDrafter
from medusa_core.drafters.merged import MergedDrafter
from medusa_core.drafters.plain import RootOnly
from medusa_core.heads import DraftHeads
from medusa_core.tree import TreeTopology

__all__ = ["DrafterSource", "Drafters"]


class Drafters(Protocol):
    """Where the engine finds the drafter a request asks for."""

    def get(self, speculation: SpeculationParams) -> Drafter:
        """The drafter for these parameters, the same object for equal ones."""
        ...


class DrafterSource:
    """The drafter for each way a request may speculate, made once per shape and kept."""

    def __init__(
        self, heads: DraftHeads | None, temperatures: Tensor, tree_nodes: int, lookup_depth: int, device: torch.device
    ) -> None:
        """Heads with their temperatures [K], the most nodes of a tree, and how deep lookup may reach; 0 is off."""
        self._heads, self._temperatures = heads, temperatures
        self._tree_nodes, self._lookup_depth = tree_nodes, lookup_depth
        self._plain = RootOnly(device)
        self._made: dict[tuple[SpeculationMode, int], Drafter] = {}

    def get(self, speculation: SpeculationParams) -> Drafter:
        """The drafter a request asks for; without heads, or with one node, plain decoding."""
        asked = speculation.max_nodes if speculation.max_nodes is not None else self._tree_nodes
        num_nodes = min(asked, self._tree_nodes)
        if self._heads is None or speculation.mode == "off" or num_nodes == 1:
            return self._plain
        key = (speculation.mode, num_nodes)
        if key not in self._made:
            self._made[key] = _MODES[speculation.mode](self._heads, self._temperatures, num_nodes, self._lookup_depth)
        return self._made[key]


def _tree(heads: DraftHeads, temperatures: Tensor, num_nodes: int, lookup_depth: int) -> Drafter:
    if lookup_depth == 0:
        return MedusaDrafter.best_nodes(heads, temperatures, num_nodes)
    return MergedDrafter.best_nodes(heads, temperatures, num_nodes, lookup_depth)


def _chain(heads: DraftHeads, temperatures: Tensor, num_nodes: int, lookup_depth: int) -> Drafter:
    return MedusaDrafter.static(heads, temperatures, TreeTopology.chain(num_nodes - 1))


# How each mode drafts with heads; `off` is the plain drafter, which needs none.
_MODES: dict[SpeculationMode, Callable[[DraftHeads, Tensor, int, int], Drafter]] = {
    "auto": _tree,
    "tree": _tree,
    "chain": _chain,
}
