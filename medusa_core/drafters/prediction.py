"""Predicted output as a drafter: the client says what it expects, most of which is then only checked.

An editor that wants a file back with one change sends the file. Where the answer departs from the prediction the
branch is refused like any other; it is found again as soon as the last tokens stand in the prediction.
"""

from collections.abc import Sequence

import torch

from medusa_core.drafters.drafter import DraftState
from medusa_core.drafters.prompt_lookup import match_lengths
from medusa_core.memory import NOTHING, kind_of
from medusa_core.node_choice import Proposal
from medusa_core.tree import GRADES, TreeTopology

__all__ = ["PredictionBranch"]


class PredictionBranch:
    """Proposes what follows, in the prediction, the longest match of the answer's last tokens.

    Of equally long matches the one nearest to where the answer would be, had nothing been added or left out, is taken.
    """

    def __init__(self, prediction: Sequence[int], first_position: int, depth: int, device: torch.device) -> None:
        """`first_position` is the absolute position of the answer's first token, `depth` how many to propose."""
        length = len(prediction)
        self.shape, self._first_kind = TreeTopology.chain(depth), kind_of("prediction", 0)
        # behind its end there is nothing to propose
        self._tokens = torch.tensor([*prediction, *[0] * depth], dtype=torch.long, device=device)
        self._text = self._tokens[:length]
        self._places = torch.arange(length, device=device)
        self._ahead = torch.arange(depth, device=device)
        self._back = torch.arange(1 - GRADES, 1, device=device)
        self._first = first_position

    def propose(self, state: DraftState) -> Proposal:
        """See Proposer.propose; needs `state.history`."""
        assert state.history is not None, "the engine keeps the history of a sequence that is predicted"
        recent = state.history[(state.past + self._back).clamp(min=0)]
        written = state.past + 1 - self._first  # tokens of the answer, root included
        matched = match_lengths(self._text, recent).minimum(written)  # the prompt is no part of the answer
        distance = (self._places + 1 - written).abs().clamp(max=self._text.shape[0])
        best = (matched * (self._text.shape[0] + 1) - distance).argmax()
        length = matched.index_select(0, best.reshape(1))  # [1]; an index of no dimension is read by the host
        following = best + 1 + self._ahead
        kinds = self._first_kind + (length - 1 + self._ahead).clamp(0, GRADES - 1)
        is_possible = (length > 0) & (following < self._text.shape[0])
        return Proposal(self._tokens[following], torch.where(is_possible, kinds, NOTHING))
