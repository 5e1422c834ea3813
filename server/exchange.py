"""One HTTP exchange, as far as its line in the log and its span tell of it: never a word of prompt or answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Scope

from server.worker.messages import Sampling

__all__ = ["CLIENT_CLOSED_REQUEST", "EXCHANGE", "Exchange", "Generated", "exchange_of"]

# What is told of a request whose client has left before its answer began.
CLIENT_CLOSED_REQUEST = 499
# Where the ASGI scope holds it.
EXCHANGE = "medusa.exchange"


@dataclass(frozen=True)
class Generated:
    """What a request for text has come to.

    model:             the name under which the model is served.
    choices:           answers that were asked for.
    outcome:           finish reason, timeout, abort or error.
    tokens:            of all answers, up to the cut.
    tokens_per_step:   emitted tokens / verifying forwards, bonus included; None where no step was needed.
    acceptance_length: accepted drafts of a step on average, bonus not included; None likewise.
    submitted, started, first_token, ended: monotonic times of this process; None where it did not come to that.
    """

    model: str
    sampling: Sampling
    max_tokens: int | None
    choices: int
    outcome: str
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    steps: int
    tokens_per_step: float | None
    acceptance_length: float | None
    submitted: float
    started: float | None
    first_token: float | None
    ended: float

    @property
    def phases(self) -> dict[str, tuple[float, float]]:
        """Beginning and end of queue, prefill and decode, as far as they began; one ends where the next begins."""
        stamps = [self.submitted, self.started, self.first_token]
        begun = [stamp for stamp in stamps if stamp is not None]
        names = ("queue", "prefill", "decode")[: len(begun)]
        return dict(zip(names, zip(begun, [*begun[1:], self.ended], strict=True), strict=True))


@dataclass
class Exchange:
    """A request and its answer.

    arrived: monotonic time.
    error:   class of the error that ended it.
    tell:    what generation has come to; None where none was asked for, or not yet.
    """

    request_id: str
    arrived: float
    error: str | None = None
    tell: Callable[[], Generated] | None = None


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a scope belongs to; one that begins now where nobody observes."""
    exchange: Exchange = scope.setdefault(EXCHANGE, Exchange("-", time.monotonic()))
    return exchange
