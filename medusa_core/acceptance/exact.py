"""Sample-and-match: every emitted token is the very token plain decoding would have drawn."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medusa_core.acceptance.rule import Acceptance, deepest_path
from medusa_core.sampling import Sampler
from medusa_core.tree import CandidateTree

__all__ = ["Exact", "matches"]


@dataclass(frozen=True)
class Exact:
    """Draw once per position, follow the child that equals the draw.

    The noise of a draw depends on seed, choice, position and token alone, so the output does not depend on the tree.
    Lossless at any temperature (token for token where the logits are equal); temperature 0 is greedy.
    """

    sampler: Sampler

    def accept(self, tree: CandidateTree, logits: Tensor, past: Tensor) -> Acceptance:
        """See AcceptanceRule.accept; logits [N, V], past []."""
        draws = self.sampler.draw(logits, tree.depth, past + 1, tree.max_depth, tree.noise)
        alive = tree.living(matches(tree, draws))
        path, count = deepest_path(tree, alive)
        return Acceptance(path, draws[path], count)


def matches(tree: CandidateTree, draws: Tensor) -> Tensor:
    """Which nodes hold the token drawn at their parent.

    draws: [N] int64.

    Returns [N] bool; the root always matches, an unused slot never does.
    """
    is_root = torch.arange(tree.num_nodes, device=draws.device) == 0
    return (tree.tokens == draws[tree.parent]) & tree.used | is_root
