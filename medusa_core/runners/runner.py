"""The seam between a request's loop and the way its steps reach the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from medusa_core.acceptance import AcceptanceRule
from medusa_core.adjustments import Adjustments
from medusa_core.constraints import Constraint
from medusa_core.decoding import Logprobs, Prompts
from medusa_core.drafters import Drafter, DraftState

__all__ = ["DecodePlan", "DraftedNode", "Drafting", "Runner", "StepDetail", "StepResult", "TokenLogprobs", "to_host"]


class Drafting(Protocol):
    """Who drafts for one request, step by step."""

    def next(self, past: int, forced: int = 0) -> Drafter:
        """The drafter of the step that is issued next, behind about `past` rows; `forced` as of Pace.choose.

        Asked once for every step. A runner that is a step ahead asks before the last result is known.
        """
        ...


@dataclass(frozen=True)
class DecodePlan:
    """What stays fixed over the steps of one request.

    constraint:   the answer on its way through a grammar, which the runner moves on; None without one.
    top_logprobs: report how likely each token was, with so many alternatives; None reports nothing.
    """

    drafting: Drafting
    adjustments: Adjustments
    rule: AcceptanceRule
    constraint: Constraint | None
    top_logprobs: int | None


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely the model found one token.

    logprob: in nats, of the token itself.
    top:     the likeliest tokens in its place with theirs, best first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class DraftedNode:
    """One node of a verified tree.

    parent:      index among the nodes; None for the root, which nobody has drafted in this step.
    source:      who drafted it; None for the root.
    rank:        its place among the guesses of its head, 0 for the likeliest; None where no head drafted it.
    probability: that the step would accept it, as estimated when the tree was made; 1 for the root.
    """

    token: int
    parent: int | None
    depth: int
    source: str | None
    rank: int | None
    probability: float


@dataclass(frozen=True)
class StepDetail:
    """All of one step, for somebody who looks at it.

    nodes:  those of the tree that could be accepted, root first, parents before their children.
    path:   indices of the accepted ones from the root's child down.
    tokens: the emitted tokens before anything is cut: those of the path, then the bonus.
    """

    nodes: tuple[DraftedNode, ...]
    path: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class StepResult:
    """What one step told the host.

    tokens:   emitted tokens, accepted drafts then the bonus.
    drafted:  used nodes of the tree by who drafted them, root not counted.
    accepted: who drafted each accepted token.
    num_nodes: N, slots of the verified tree, root included.
    path:     the accepted nodes from the root's child down. Where nodes are ranked a tree's first n are the tree of n
              nodes, so this also tells what every smaller tree would have brought.
    head_hits: whether each head's likeliest token was the one emitted at its depth, for the heads whose guess followed
               accepted tokens only.
    logprobs: one for each token, when the plan asks for them.
    phases:   seconds spent in each part of the step; empty where the host does not wait for the device in between.
    detail:   the step to look at; None where nobody does.
    """

    tokens: list[int]
    drafted: dict[str, int]
    accepted: list[str]
    num_nodes: int
    path: list[int]
    head_hits: list[bool]
    logprobs: list[TokenLogprobs] | None
    phases: dict[str, float]
    detail: StepDetail | None = None


def to_host(logprobs: Logprobs) -> list[TokenLogprobs]:
    """Log-probabilities as values, one for each place."""
    columns = logprobs.chosen.tolist(), logprobs.tokens.tolist(), logprobs.values.tolist()
    return [
        TokenLogprobs(chosen, tuple(zip(tokens, values, strict=True)))
        for chosen, tokens, values in zip(*columns, strict=True)
    ]


class Runner(Protocol):
    """Runs steps one after another; the caller stops iterating when it has enough.

    settling_steps: the first steps of a kind that may be slower than all later ones.
    """

    settling_steps: int

    def prompts(self, lengths: Sequence[int]) -> Prompts:
        """How prompts are computed, where work is recorded in passes of these lengths; none leaves them ordinary."""
        ...

    def steps(self, plan: DecodePlan, state: DraftState, past: int) -> Iterator[StepResult]:
        """Decode from `state`, whose `past` is also known on the host. Mutates the cache's rows behind `past`."""
        ...
