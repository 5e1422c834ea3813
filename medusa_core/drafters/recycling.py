"""Token recycling: what the model itself last found likeliest behind each token, as a tree. Needs no training.

Source: Token Recycling (arXiv:2408.08696). There the tree is fixed; here its nodes compete with all others.
"""

import torch

from medusa_core.calibration import Calibration
from medusa_core.drafters.drafter import DraftState
from medusa_core.node_choice import Proposal
from medusa_core.tree import TreeTopology

__all__ = ["Recycling", "recycling_shape"]

# How often the successor of each rank is right, roughly; it decides which ranks are candidates, not how they compare.
_BY_RANK = (0.35, 0.12, 0.07, 0.05, 0.04, 0.03, 0.02, 0.02)
# Deeper than this a chain of last-seen successors is hardly ever right.
_MAX_DEPTH = 6


def recycling_shape(num_nodes: int, max_depth: int, vocab_size: int) -> TreeTopology:
    """The `num_nodes` candidates that are likeliest by what is known beforehand of successors' ranks."""
    chances = _BY_RANK[:vocab_size]
    depth = min(max_depth, _MAX_DEPTH)
    calibration = Calibration((chances,) * depth, (1,) * depth, (1.0,) * depth)
    return TreeTopology.from_paths(calibration.best_tree(num_nodes + 1))


class Recycling:
    """Proposes the likeliest successors of the root, theirs, and so on, in a fixed shape of ranks."""

    def __init__(self, shape: TreeTopology, device: torch.device) -> None:
        """`shape` has no rank beyond memory.SUCCESSORS."""
        self.shape = shape
        # of each level, the nodes' parents as indices into the level above, and their ranks
        self._levels = []
        above: tuple[tuple[int, ...], ...] = ((),)
        for depth in range(1, shape.max_depth + 1):
            level = tuple(path for path in shape.paths if len(path) == depth)
            parents = torch.tensor([above.index(path[:-1]) for path in level], device=device)
            self._levels.append((parents, torch.tensor([path[-1] for path in level], device=device)))
            above = level

    def propose(self, state: DraftState) -> Proposal:
        """See Proposer.propose; needs `state.memory` with successors."""
        assert state.memory is not None and state.memory.successors is not None, "the engine keeps what followed"
        known, tokens, found = state.memory.successors, state.root.reshape(1), []
        for parents, ranks in self._levels:
            above = tokens[parents]
            tokens = known.tokens[above, ranks]
            found.append(Proposal(tokens, known.kinds[above, ranks]))
        return Proposal.joined(found)
