"""The seam between a request's loop and the way its steps reach the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from medusa_core.acceptance import AcceptanceRule
from medusa_core.adjustments import Adjustments
from medusa_core.drafters import Drafter, DraftState

__all__ = ["DecodePlan", "Runner", "StepResult"]


@dataclass(frozen=True)
class DecodePlan:
    """What stays fixed over the steps of one request."""

    drafter: Drafter
    adjustments: Adjustments
    rule: AcceptanceRule


@dataclass(frozen=True)
class StepResult:
    """What one step told the host.

    tokens:  emitted tokens, accepted drafts then the bonus.
    drafted: used nodes of the tree, root not counted.
    """

    tokens: list[int]
    drafted: int


class Runner(Protocol):
    """Runs steps one after another; the caller stops iterating when it has enough."""

    def steps(self, plan: DecodePlan, state: DraftState, past: int) -> Iterator[StepResult]:
        """Decode from `state`, whose `past` is also known on the host. Mutates the cache's rows behind `past`."""
        ...
