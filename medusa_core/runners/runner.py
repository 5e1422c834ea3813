"""The seam between a request's loop and the way its steps reach the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from medusa_core.acceptance import AcceptanceRule
from medusa_core.adjustments import Adjustments
from medusa_core.decoding import Logprobs
from medusa_core.drafters import Drafter, DraftState

__all__ = ["DecodePlan", "Runner", "StepResult", "TokenLogprobs", "to_host"]


@dataclass(frozen=True)
class DecodePlan:
    """What stays fixed over the steps of one request.

    top_logprobs: report how likely each token was, with so many alternatives; None reports nothing.
    """

    drafter: Drafter
    adjustments: Adjustments
    rule: AcceptanceRule
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
    drafted:  used nodes of the tree, root not counted.
    logprobs: one for each token, when the plan asks for them.
    """

    tokens: list[int]
    drafted: int
    logprobs: list[TokenLogprobs] | None


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
