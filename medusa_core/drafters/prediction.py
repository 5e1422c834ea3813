"""Predicted output as a drafter: the client says what it expects, most of which is then only checked.

An editor that wants a file back with one change sends the file. Where the answer departs from the prediction the
branch is refused like any other; it is found again as soon as the last tokens stand in the prediction.
"""

from collections.abc import Sequence

import torch

from medusa_core.drafters.drafter import DraftState
from medusa_core.drafters.prompt_lookup import match_lengths
from medusa_core.node_choice import IMPOSSIBLE, Branch

__all__ = ["PredictionBranch"]

# Longer matches than lookup's: a file holds its common lines many times, and only one of them is the right one.
_LONGEST_MATCH = 8
# Estimated chance that the next token is right, by how many tokens match (1, 2, 3, more); higher than lookup's, since
# what is matched was sent for this very purpose. Chosen, not measured.
_CONTINUES = (0.6, 0.8, 0.9, 0.95)


class PredictionBranch:
    """Proposes what follows, in the prediction, the longest match of the answer's last tokens.

    Of equally long matches the one nearest to where the answer would be, had nothing been added or left out, is taken.
    """

    def __init__(self, prediction: Sequence[int], first_position: int, depth: int, device: torch.device) -> None:
        """`first_position` is the absolute position of the answer's first token, `depth` how many to propose."""
        length = len(prediction)
        # behind its end there is nothing to propose
        self._tokens = torch.tensor([*prediction, *[0] * depth], dtype=torch.long, device=device)
        self._text = self._tokens[:length]
        self._places = torch.arange(length, device=device)
        self._ahead = torch.arange(depth, device=device)
        self._back = torch.arange(_LONGEST_MATCH, device=device)
        self._log_probs = torch.tensor(_CONTINUES, device=device).log()
        self._impossible = torch.full((depth,), IMPOSSIBLE, device=device)
        self._first = first_position

    def propose(self, state: DraftState) -> Branch:
        """See BranchDrafter.propose; needs `state.history`."""
        assert state.history is not None, "the engine keeps the history of a sequence that is predicted"
        recent = state.history[(state.past - self._back).clamp(min=0)]
        written = state.past + 1 - self._first  # tokens of the answer, root included
        matched = match_lengths(self._text, recent).minimum(written)  # the prompt is no part of the answer
        distance = (self._places + 1 - written).abs().clamp(max=self._text.shape[0])
        best = (matched * (self._text.shape[0] + 1) - distance).argmax()
        length = matched.index_select(0, best.reshape(1))  # [1]; an index of no dimension is read by the host
        following = best + 1 + self._ahead
        log_probs = self._log_probs[(length - 1 + self._ahead).clamp(0, len(_CONTINUES) - 1)]
        is_possible = (length > 0) & (following < self._text.shape[0])
        return Branch(self._tokens[following], torch.where(is_possible, log_probs, self._impossible))
