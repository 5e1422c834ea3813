"""The seam between a request's loop and the way its steps reach the device."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch

from medusa_core.acceptance import Acceptance, AcceptanceRule
from medusa_core.adjustments import Adjustments
from medusa_core.constraints import Constraint
from medusa_core.decoding import Logprobs
from medusa_core.drafters import Drafter, DraftState
from medusa_core.tree import SOURCES, CandidateTree

__all__ = ["DecodePlan", "Drafting", "Runner", "StepResult", "TokenLogprobs", "step_result", "to_host"]


class Drafting(Protocol):
    """Who drafts for one request, step by step."""

    def next(self, past: int) -> Drafter:
        """The drafter of the step that is issued next, behind about `past` rows.

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
    """

    tokens: list[int]
    drafted: dict[str, int]
    accepted: list[str]
    num_nodes: int
    path: list[int]
    head_hits: list[bool]
    logprobs: list[TokenLogprobs] | None
    phases: dict[str, float]


def step_result(accepted: Acceptance, tree: CandidateTree, logprobs: Logprobs | None) -> StepResult:
    """A step's outcome as values, in one copy to the host.

    logprobs: of the tokens along the path, as many as there are places on it.
    """
    guesses = tree.guesses if tree.guesses is not None else tree.tokens[:0]
    parts = accepted.count[None], accepted.path, accepted.tokens, tree.used.long(), tree.source, guesses
    values = _split(torch.cat(parts).tolist(), [part.shape[0] for part in parts])
    (count,), path, tokens, used, source, guessed = values
    names = [SOURCES[index] for index in source]
    drafted = Counter(name for name, is_used in zip(names[1:], used[1:], strict=True) if is_used)
    return StepResult(
        tokens=tokens[:count],
        drafted=dict(drafted),
        accepted=[names[node] for node in path[1:count]],
        num_nodes=tree.num_nodes,
        path=path[1:count],
        head_hits=[guess == token for guess, token in zip(guessed, tokens[:count], strict=False)],
        logprobs=to_host(logprobs)[:count] if logprobs is not None else None,
        phases={},
    )


def _split(values: list[int], lengths: list[int]) -> list[list[int]]:
    ends = list(accumulate(lengths))
    return [values[end - length : end] for length, end in zip(lengths, ends, strict=True)]


def to_host(logprobs: Logprobs) -> list[TokenLogprobs]:
    """Log-probabilities as values, one for each place."""
    columns = logprobs.chosen.tolist(), logprobs.tokens.tolist(), logprobs.values.tolist()
    return [
        TokenLogprobs(chosen, tuple(zip(tokens, values, strict=True)))
        for chosen, tokens, values in zip(*columns, strict=True)
    ]


class Runner(Protocol):
    """Runs steps one after another; the caller stops iterating when it has enough."""

    def steps(self, plan: DecodePlan, state: DraftState, past: int) -> Iterator[StepResult]:
        """Decode from `state`, whose `past` is also known on the host. Mutates the cache's rows behind `past`."""
        ...
