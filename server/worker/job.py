"""One place in the queue of the worker, and what comes back for it."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

from medusa_core.errors import MedusaError
from server.worker.messages import Done, Generate, TokenDelta

__all__ = ["Job", "JobOwner", "Stage"]

Stage = Literal["queued", "prefill", "decode", "ended"]


class JobOwner(Protocol):
    """Who has queued a job and talks to the worker about it."""

    def skip(self, job: "Job", index: int) -> None:
        """See Job.skip."""
        ...

    def cancel(self, job: "Job") -> None:
        """See Job.cancel."""
        ...


class Job:
    """One place in the queue, then the deltas of all answers it asks for, one answer after another; iterate it once.

    current:     index of the answer that is decoded.
    timer:       ends the job when its time runs out.
    submitted, started, first_token, ended: monotonic times; None until it comes to that.
    """

    def __init__(self, requests: Sequence[Generate], owner: JobOwner) -> None:
        self.requests = tuple(requests)
        self.current = 0
        self.stage: Stage = "queued"
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._owner = owner
        self._inbox: asyncio.Queue[tuple[int, TokenDelta] | Done | MedusaError] = asyncio.Queue()

    @property
    def request(self) -> Generate:
        """What the worker decodes now, or will first."""
        return self.requests[self.current]

    @property
    def is_last(self) -> bool:
        """Whether no answer follows the current one."""
        return self.current == len(self.requests) - 1

    def __aiter__(self) -> AsyncIterator[tuple[int, TokenDelta]]:
        return self

    async def __anext__(self) -> tuple[int, TokenDelta]:
        """The next delta with the index of its answer.

        Raises what the worker raised, WorkerDied when it is gone, QueueTimeout or RequestTimeout when time ran out.
        """
        item = await self._inbox.get()
        if isinstance(item, MedusaError):
            raise item
        if isinstance(item, Done):
            raise StopAsyncIteration
        return item

    def begin(self) -> float:
        """The worker has been asked for the first answer; returns the seconds the job has waited for that."""
        self.stage = "prefill"
        self.started = time.monotonic()
        return self.started - self.submitted

    def put(self, item: TokenDelta | Done | MedusaError) -> None:
        """Hand over what the worker said; nothing after the end."""
        if self.stage == "ended":
            return
        if not isinstance(item, TokenDelta):
            self.stage = "ended"
            self.ended = time.monotonic()
            if self.timer is not None:
                self.timer.cancel()
            self._inbox.put_nowait(item)
            return
        if self.first_token is None:
            self.stage = "decode"
            self.first_token = time.monotonic()
        self._inbox.put_nowait((self.current, item))
        if item.finish_reason is not None and self.is_last:
            self.put(Done(item.id))

    def skip(self, index: int) -> None:
        """Stop the worker before its next step of this answer; the next answer follows."""
        self._owner.skip(self, index)

    def cancel(self) -> None:
        """Leave the queue, or stop the worker before its next step; nothing when all answers have ended."""
        self._owner.cancel(self)
