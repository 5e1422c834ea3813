"""What a drafter is given and what it must return."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from medusa_core.memory import Memory
from medusa_core.node_choice import Proposal
from medusa_core.sampling import Sampler
from medusa_core.tree import CandidateTree

__all__ = ["DraftState", "Drafter", "Grammatical"]


@dataclass(frozen=True)
class Grammatical:
    """What a grammar says of the tokens behind the root.

    allowed: [V] bool, the tokens that may follow it.
    forced:  the span that must follow it, nothing where there is a choice.
    """

    allowed: Tensor
    forced: Proposal


@dataclass(frozen=True)
class DraftState:
    """All that a step needs to know of the sequence so far, on the device.

    root:    [] int64, the token already decided and emitted, not yet in the cache.
    hidden:  [H], last hidden state of the last committed token.
    past:    [] int64, committed rows, which is also the root's absolute position.
    counts:  [V] float32, how often each token stands in the answer, root included; None when no penalty asks for it.
    history: [S] int64, the token of each position up to the root's, then anything; only lookup needs it.
    grammar: what may and what must come next; None for an answer without a grammar.
    sampler: with whose noise tokens will be drawn, for drafts that are to agree with it; None when drawn without any.
    memory:  what earlier steps taught, changed in place by those who draft; None is for heads alone and no sampler.
    is_watched: whether somebody looks at the trees, which then hold what their nodes were ranked by.
    """

    root: Tensor
    hidden: Tensor
    past: Tensor
    counts: Tensor | None = None
    history: Tensor | None = None
    grammar: Grammatical | None = None
    sampler: Sampler | None = None
    memory: Memory | None = None
    is_watched: bool = False


class Drafter(Protocol):
    """Proposes a tree of continuations. Pure tensors, no host synchronisation."""

    num_nodes: int
    max_depth: int

    def draft(self, state: DraftState) -> CandidateTree:
        """A tree of `num_nodes` slots under `state.root`, no node deeper than `max_depth`."""
        ...

    def learn(self, state: DraftState, tree: CandidateTree, path: Tensor, logits: Tensor) -> None:
        """Keep in `state.memory` what the tree that was drafted for this state taught when it was verified.

        path:   [P] int64, its accepted nodes, filled up with the root.
        logits: [N, V], the model's at every node.
        """
        ...
