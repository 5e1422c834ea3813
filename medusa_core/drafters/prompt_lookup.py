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
        self.shape, self._first_kind = TreeTopology.chain(depth), kind_of("lookup", 0)
        self._ahead = torch.arange(depth, device=device)
        self._back = torch.arange(GRADES, device=device)

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
        positions = torch.arange(history.shape[0], device=history.device)
        recent = history[(past - self._back).clamp(min=0)]
        matched = match_lengths(history, recent).masked_fill(positions >= past, 0)
        best = (matched * history.shape[0] + torch.where(matched > 0, positions, 0)).argmax()
        length = matched.index_select(0, best.reshape(1))  # [1]; an index of no dimension is read by the host
        tokens = history[best + 1 + self._ahead % (past - best)]
        # each accepted token makes the match one token longer
        kinds = self._first_kind + (length - 1 + self._ahead).clamp(0, GRADES - 1)
        return Proposal(tokens, torch.where(length > 0, kinds, NOTHING))


def match_lengths(text: Tensor, recent: Tensor) -> Tensor:
    """How many of the last tokens, `recent` [M] int64 with the latest first, stand at each place of `text` [S] int64.

    Returns [S] int64, 0 to M: length of the match that ends at that place.
    """
    # the first tokens have nothing before them
    windows = torch.nn.functional.pad(text, (recent.shape[0] - 1, 0), value=-1).unfold(0, recent.shape[0], 1)  # [S, M]
    return (windows == recent.flip(0)).flip(1).to(torch.uint8).cumprod(1).sum(1)
