"""Typical acceptance: keep drafts that are likely enough. Not lossless, never a default."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from medusa_core.acceptance.rule import Acceptance, deepest_path
from medusa_core.sampling import Sampler, process_logits
from medusa_core.tree import CandidateTree

__all__ = ["Typical"]


@dataclass(frozen=True)
class Typical:
    """Accept x when p(x) > min(epsilon, delta * exp(-H(p))), p being the distribution at its parent, H in nats.

    The deepest living node wins, ties go to the larger summed log-probability; the bonus is the exact rule's draw.
    The output is not the model's distribution. Source: Medusa (arXiv:2401.10774), section "Typical Acceptance".
    At temperature 0 the paper's rule is greedy: use Exact there, as `make_rule` does.

    epsilon, delta: [] float32.
    """

    sampler: Sampler
    epsilon: Tensor
    delta: Tensor

    @classmethod
    def of_request(cls, sampler: Sampler, epsilon: float, delta: float) -> Self:
        """The rule with these thresholds, on the sampler's device."""
        device = sampler.key.device
        return cls(sampler, torch.tensor(epsilon, device=device), torch.tensor(delta, device=device))

    def accept(self, tree: CandidateTree, logits: Tensor, past: Tensor) -> Acceptance:
        """See AcceptanceRule.accept; logits [N, V], past []."""
        log_p = process_logits(logits, self.sampler.filters).log_softmax(dim=-1)
        # a forbidden token has p = 0 and adds nothing to the entropy; 0 * -inf would be NaN
        entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dim=-1)  # [N]
        threshold = (self.delta * torch.exp(-entropy)).minimum(self.epsilon)
        own = log_p[tree.parent, tree.tokens]  # [N], of each node's token at its parent
        is_root = torch.arange(tree.num_nodes, device=logits.device) == 0
        alive = tree.living((own.exp() > threshold[tree.parent]) & tree.used | is_root)
        path_log_p = torch.where(tree.ancestors & ~is_root, own.clamp(min=torch.finfo(own.dtype).min), 0.0).sum(dim=1)
        # lexicographic: depth first, then the path's log-probability
        deepest = torch.where(alive, tree.depth, -1).amax()
        last = torch.where(alive & (tree.depth == deepest), path_log_p, -torch.inf).argmax()
        chosen = tree.ancestors.index_select(0, last.reshape(1))[0]
        draws = self.sampler.draw(logits, tree.depth, past + 1, tree.max_depth, tree.noise)
        path, count = deepest_path(tree, chosen)
        following = torch.cat([path[1:], path[:1]])
        is_bonus = torch.arange(tree.max_depth + 1, device=logits.device) == count - 1
        return Acceptance(path, torch.where(is_bonus, draws[path], tree.tokens[following]), count)
