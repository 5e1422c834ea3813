"""Prompt lookup: what followed the last time the sequence read as it does now.

Source: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding), here as one pure tensor function.
"""

import torch
from torch import Tensor

from medusa_core.drafters.drafter import DraftState
from medusa_core.node_choice import IMPOSSIBLE, Branch

__all__ = ["PromptLookup", "match_lengths"]

# Share of lookups whose next token was right, by how many tokens matched (1, 2, 3, more). Measured on the demo model:
# 300 answers about trained and invented names and 300 continuations of trained source, 30,500 lookups.
_CONTINUES = (0.25, 0.45, 0.6, 0.9)


class PromptLookup:
    """Proposes the continuation of the latest longest match of a sequence's last tokens, further back in itself."""

    def __init__(self, depth: int, device: torch.device) -> None:
        """`depth` is D, how many tokens to propose."""
        self._longest = len(_CONTINUES)
        self._ahead = torch.arange(depth, device=device)
        self._back = torch.arange(self._longest, device=device)
        self._log_probs = torch.tensor(_CONTINUES, device=device).log()
        self._no_match = torch.full((depth,), IMPOSSIBLE, device=device)

    def propose(self, state: DraftState) -> Branch:
        """See BranchDrafter.propose; needs `state.history`."""
        assert state.history is not None, "the engine keeps the history of a sequence that is looked up in"
        return self.look_up(state.history, state.past)

    def look_up(self, history: Tensor, past: Tensor) -> Branch:
        """The branch of D tokens; without any match it is impossible from its start.

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
        log_probs = self._log_probs[(length - 1 + self._ahead).clamp(0, self._longest - 1)]
        return Branch(tokens, torch.where(length > 0, log_probs, self._no_match))


def match_lengths(text: Tensor, recent: Tensor) -> Tensor:
    """How many of the last tokens, `recent` [M] int64 with the latest first, stand at each place of `text` [S] int64.

    Returns [S] int64, 0 to M: length of the match that ends at that place.
    """
    places = torch.arange(text.shape[0], device=text.device)
    is_running = torch.ones_like(places, dtype=torch.bool)
    matched = torch.zeros_like(places)
    for back in range(recent.shape[0]):
        # the first tokens have nothing before them, and roll wraps round
        is_running = is_running & (text.roll(back) == recent[back]) & (places >= back)
        matched = matched + is_running
    return matched
