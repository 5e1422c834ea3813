"""What a grammar tells a drafter: spans that it forces become branches, and what it forbids next is not drafted.

The grammar itself is followed on the host; here are the tensors made of what it says.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medusa_core.drafters.drafter import DraftState
from medusa_core.memory import IMPOSSIBLE, NOTHING, kind_of
from medusa_core.node_choice import Proposal
from medusa_core.tree import TreeTopology

__all__ = ["GrammarBranch", "forced_span", "only_allowed"]


def only_allowed(log_probs: Tensor, allowed: Tensor) -> Tensor:
    """Log-probabilities [K, V] whose first row holds the columns in `allowed` [V] bool alone, renormalised.

    Returns [K, V]; what is not allowed is at IMPOSSIBLE.
    """
    # heads may know fewer tokens than the model, and so none that is allowed, which leaves a row of NaN
    first = log_probs[:1].masked_fill(~allowed, -torch.inf).log_softmax(dim=-1).nan_to_num(nan=IMPOSSIBLE)
    # never above 0, or a child would outscore its parent
    return torch.cat([first.clamp(min=IMPOSSIBLE, max=0.0), log_probs[1:]])


def forced_span(tokens: Sequence[int], depth: int, device: torch.device) -> Proposal:
    """The chain of D = `depth` tokens that begins with a forced span: nothing else can be drawn there."""
    span = list(tokens[:depth])
    missing = depth - len(span)
    kinds = [kind_of("grammar", 0)] * len(span) + [NOTHING] * missing
    # one copy to the device, of whole numbers also where there are none
    both = torch.tensor([[*span, *[0] * missing], kinds], dtype=torch.long, device=device)
    return Proposal(both[0], both[1])


class GrammarBranch:
    """Proposes the span that the grammar forces behind the root.

    On BFCL and API-Bank 37-50 % of the tokens of tool calls are determined by their grammar
    (github.com/sgl-project/sglang, issue 17062).
    """

    def __init__(self, depth: int) -> None:
        """`depth` is D, that of the spans which the runner makes."""
        self.shape = TreeTopology.chain(depth)

    def propose(self, state: DraftState) -> Proposal:
        """See Proposer.propose; needs `state.grammar`."""
        assert state.grammar is not None, "the runner says what the grammar of a constrained answer forces"
        return state.grammar.forced
