"""Prompt lookup: what followed the last time the sequence read as it does now.

Source: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding), here as one pure tensor function.
"""

import torch
from torch import Tensor

from medusa_core.tree import IMPOSSIBLE, Branch

__all__ = ["PromptLookup"]

# Share of lookups whose next token was right, by how many tokens matched (1, 2, 3, more). Measured on the demo model:
# 300 answers about trained and invented names and 300 continuations of trained source, 30,500 lookups.
_CONTINUES = (0.25, 0.45, 0.6, 0.9)


class PromptLookup:
    """Proposes the continuation of the latest longest match of a sequence's last tokens, further back in itself."""

    def __init__(self, depth: int, device: torch.device) -> None:
        """`depth` is D, how many tokens to propose."""
        self._longest = len(_CONTINUES)
        self._ahead = torch.arange(depth, device=device)
        self._log_probs = torch.tensor(_CONTINUES, device=device).log()
        self._no_match = torch.full((depth,), IMPOSSIBLE, device=device)

    def look_up(self, history: Tensor, past: Tensor) -> Branch:
        """The branch of D tokens; without any match it is impossible from its start.

        history: [S] int64, the token of each position up to the root's, then anything.
        past:    [] int64, absolute position of the root, at least 1.

        A match so late that the text behind it runs out goes round in a circle, as repetition does.
        """
        positions = torch.arange(history.shape[0], device=history.device)
        is_running = positions < past
        matched = torch.zeros_like(positions)
        for back in range(self._longest):
            wanted = history.index_select(0, (past - back).clamp(min=0).reshape(1))
            # the first tokens have nothing before them, and roll wraps round
            is_running = is_running & (history.roll(back) == wanted) & (positions >= back)
            matched = matched + is_running
        best = (matched * history.shape[0] + torch.where(matched > 0, positions, 0)).argmax()
        length = matched[best]
        tokens = history[best + 1 + self._ahead % (past - best)]
        # each accepted token makes the match one token longer
        log_probs = self._log_probs[(length - 1 + self._ahead).clamp(0, self._longest - 1)]
        return Branch(tokens, torch.where(length > 0, log_probs, self._no_match))
