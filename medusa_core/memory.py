"""What speculation remembers from step to step and from request to request.

That is how often which kind of candidate was right, and what the model found likeliest behind each token.

It steers what is drafted, which the exact rule never lets change what is emitted. Steps change it in place, as they
change the cache.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from medusa_core.tree import GRADES, SOURCES, CandidateTree

__all__ = ["GUESS", "IMPOSSIBLE", "NOTHING", "SUCCESSORS", "Memory", "Successors", "kind_of"]

# Log-probability of a candidate that cannot be drafted; finite, because 0 * -inf would be NaN in sums over paths.
IMPOSSIBLE = -1e4

# Chance that a candidate is right, given that its parent is, before anything was learnt: by source, then by grade.
# Lookup and prediction by how many tokens match, recycling by how likely the token was when it was last seen. Lookup is
# measured on the demo model as far as 4 tokens (300 answers about trained and invented names and 300 continuations of
# trained source, 30,500 lookups); the others are chosen: steps soon know better.
_PRIOR = {
    "heads": (1.0, 0.0),
    "lookup": (0.25, 0.45, 0.6, 0.9, 0.9, 0.93, 0.95, 0.97),
    "recycling": (0.01, 0.03, 0.06, 0.1, 0.18, 0.3, 0.5, 0.7),
    "prediction": (0.6, 0.8, 0.9, 0.95, 0.95, 0.97, 0.97, 0.98),
    "grammar": (1.0,),
}
# Probabilities at which one grade of recycling ends and the next begins.
_GRADE_BOUNDS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 0.85)
# Tries that the prior counts for.
_PRIOR_TRIES = 8.0
# Per step, so that what was learnt long ago is forgotten, and a kind that was given up is one day tried again.
_DECAY = 0.98

# The heads' own guesses, whose chances they say themselves.
GUESS = 0
# No candidate at all.
NOTHING = 1

# Tokens that are remembered as successors of each.
SUCCESSORS = GRADES


def kind_of(source: str, grade: int) -> int:
    """The kind of a source's candidates of one grade, 0 for the least sure."""
    return GRADES * SOURCES.index(source) + grade


@dataclass(frozen=True)
class Successors:
    """The R tokens likeliest to follow each token, as the model last said, best first.

    tokens: [V + 1, R] int64, R different ones also where nothing is known. The last row takes what must not be kept.
    kinds:  [V + 1, R] int64, how likely each was; NOTHING where nothing is known.
    """

    tokens: Tensor
    kinds: Tensor

    @classmethod
    def unknown(cls, vocab_size: int, device: torch.device) -> Self:
        """Of no token anything is known yet."""
        tokens = torch.arange(min(SUCCESSORS, vocab_size), device=device).repeat(vocab_size + 1, 1)
        return cls(tokens, torch.full_like(tokens, NOTHING))


class Memory:
    """Buffers on the device, for a vocabulary of `vocab_size` tokens.

    outcomes:   [kinds, 2] float32, of the drafted nodes whose parent was accepted, how many were accepted themselves
                and how many there were, both fading.
    successors: None where nobody recycles them.
    """

    def __init__(self, vocab_size: int, device: torch.device, keeps_successors: bool = True) -> None:
        self.vocab_size = vocab_size
        self.outcomes = torch.zeros(len(SOURCES) * GRADES, 2, device=device)
        self.successors = Successors.unknown(vocab_size, device) if keeps_successors else None
        chances = [chance for source in SOURCES for chance in (*_PRIOR[source], *[0.0] * GRADES)[:GRADES]]
        tries = torch.full((len(chances),), _PRIOR_TRIES)
        self._prior = torch.stack([tries * torch.tensor(chances), tries], dim=1).to(device)  # [kinds, 2]
        self._bounds = torch.tensor(_GRADE_BOUNDS).log().to(device)

    def forget_outcomes(self) -> None:
        """Start from what was known beforehand."""
        self.outcomes.zero_()

    def forget_successors(self) -> None:
        """Start without having seen any token."""
        if self.successors is not None:
            self.successors.kinds.fill_(NOTHING)

    def log_chances(self) -> Tensor:
        """Log-probability that a candidate of each kind is right, given that its parent is: [kinds], <= 0, finite."""
        accepted, tried = (self.outcomes + self._prior).unbind(1)
        return (accepted / tried).log().clamp(min=IMPOSSIBLE, max=0.0)

    def learn(self, tree: CandidateTree, path: Tensor) -> None:
        """Count a verified tree; `path` [P] int64 are its accepted nodes, filled up with the root."""
        is_drafted = tree.depth > 0
        was_accepted = torch.zeros_like(tree.used).index_fill(0, path, True)
        was_tried = tree.used & was_accepted[tree.parent] & is_drafted
        counts = torch.stack([was_accepted & is_drafted, was_tried], dim=1).to(self.outcomes.dtype)
        self.outcomes.mul_(_DECAY).index_add_(0, tree.kind, counts)

    def keep_successors(self, tree: CandidateTree, logits: Tensor) -> None:
        """Remember what the model says may follow the tokens of a tree; logits [N, V]."""
        if self.successors is None:
            return
        likeliest = logits.topk(self.successors.tokens.shape[1], dim=-1)
        # among themselves: hardly less than among all, and on a CPU for half the price
        log_probs = likeliest.values.float().log_softmax(dim=-1)
        kinds = kind_of("recycling", 0) + torch.bucketize(log_probs, self._bounds)
        # Of nodes with one token the first, and so the likeliest, writes alone: on a GPU several would write one row
        # piece by piece, and leave a token in it twice.
        comes_again = ((tree.tokens[:, None] == tree.tokens) & tree.used).tril(-1).any(dim=1)
        rows = torch.where(tree.used & ~comes_again, tree.tokens, self.successors.tokens.shape[0] - 1)
        self.successors.tokens.index_copy_(0, rows, likeliest.indices)
        self.successors.kinds.index_copy_(0, rows, kinds)
