"""Prompt lookup: what followed the last time the sequence read as it does now.

Source: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding), here as one pure tensor function.
"""

import torch
from torch import Tensor

from medusa_core.drafters.drafter import DraftState
from medusa_core.memory import NOTHING, kind_of
from medusa_core.node_choice import Proposal
from medusa_core.tree import GRADES, TreeTopology

__all__ = ["PromptLookup", "match_lengths"]


class PromptLookup:
    """Proposes the continuation of the latest longest match of a sequence's last tokens, further back in itself."""

    def __init__(self, depth: int, device: torch.device) -> None:
        """`depth` is D, how many tokens to propose."""
        self.shape = TreeTopology.chain(depth)
        self._ahead = torch.arange(depth, device=device)
        self._kinds = kind_of("lookup", 0) + self._ahead - 1  # behind a match of no token
        self._surest, self._nothing = kind_of("lookup", GRADES - 1), torch.tensor(NOTHING, device=device)

    def propose(self, state: DraftState) -> Proposal:
        """See Proposer.propose; needs `state.history`."""
        assert state.history is not None, "the engine keeps the history of a sequence that is looked up in"
        return self.look_up(state.history, state.past)

    def look_up(self, history: Tensor, past: Tensor) -> Proposal:
        """A chain of D tokens; without any match it is nothing.

        history: [S] int64, the token of each position up to the root's, then anything.
        past:    [] int64, absolute position of the root, at least 1.

        A match so late that the text behind it runs out goes round in a circle, as repetition does.
        """
        size = history.shape[0]
        positions = torch.arange(size, device=history.device)
        windows = _windows(history)
        matched = _common_ends(windows, windows.index_select(0, past.reshape(1)))
        # the longest, and of equals the latest; a score below `size` is of no match
        scores = torch.add(positions, matched, alpha=size).masked_fill(positions >= past, 0)
        score, best = scores.max(dim=0)
        tokens = history[best + 1 + self._ahead % (past - best)]
        # each accepted token makes the match one token longer
        kinds = (self._kinds + score // size).clamp(max=self._surest)
        return Proposal(tokens, torch.where(score >= size, kinds, self._nothing))


def match_lengths(text: Tensor, recent: Tensor) -> Tensor:
    """How many of the last tokens stand at each place of a text, counted back from there.

    text:   [S] int64.
    recent: [GRADES] int64, the latest last.

    Returns [S] int64, 0 to GRADES: length of the match that ends at that place.
    """
    return _common_ends(_windows(text), recent)


def _windows(text: Tensor) -> Tensor:
    """Each token of `text` [S] with those before it, itself last: [S, GRADES]; before the first there is -1."""
    return torch.nn.functional.pad(text, (GRADES - 1, 0), value=-1).unfold(0, GRADES, 1)


def _common_ends(windows: Tensor, recent: Tensor) -> Tensor:
    """How many tokens, counted from the last, each window [S, GRADES] has in common with `recent` [GRADES]: [S]."""
    return (windows == recent).flip(1).cumprod(1, dtype=torch.uint8).sum(1)
