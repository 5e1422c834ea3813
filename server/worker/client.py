"""The server's side of the worker: a bounded queue and one running answer; the supervisor below keeps it alive."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence

import msgspec

from medusa_core.errors import MedusaError, NotReady, QueueFull, QueueTimeout, RequestTimeout, WorkerDied
from server.logs import LogLevel
from server.metrics import Metrics
from server.worker.job import Job
from server.worker.messages import Cancel, Done, Ending, Failed, Generate, Load, TokenDelta, WorkerInfo
from server.worker.supervisor import STOPPING, Supervisor, WorkerState, rebuild

__all__ = ["ENGINE_FACTORY", "WorkerClient"]

ENGINE_FACTORY = "server.worker.core_engine:load_engine"


class WorkerClient:
    """Feeds the worker one request at a time.

    load:           what the worker is to load.
    queue_size:     requests that may wait while one is decoded.
    step_timeout_s: a worker that gives no sign of life for longer is replaced; None waits for ever.
    factory:        `package.module:name` of the worker's EngineFactory.
    """

    def __init__(
        self,
        load: Load,
        queue_size: int,
        metrics: Metrics,
        step_timeout_s: float | None,
        factory: str = ENGINE_FACTORY,
    ) -> None:
        self.supervisor = Supervisor(load, step_timeout_s, metrics, factory, self)
        self._queue_size = queue_size
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._next_id = 0
        self._is_to_reload = False
        # a moving average, for Retry-After
        self._seconds_per_answer = 1.0
        self._dispatched = 0.0

    @property
    def state(self) -> WorkerState:
        """How the worker is."""
        return self.supervisor.state

    @property
    def info(self) -> WorkerInfo | None:
        """What was loaded last; None before the first load."""
        return self.supervisor.info

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return self.supervisor.pid

    @property
    def is_busy(self) -> bool:
        """Whether a request runs or waits."""
        return self._running is not None or len(self._waiting) > 0

    async def start(self) -> None:
        """Start the worker and return; `wait_loaded` tells when it can answer."""
        self.supervisor.start()

    async def wait_loaded(self) -> WorkerInfo:
        """Wait for the first load. Raises what the engine raised, WorkerDied when the process ended."""
        return await self.supervisor.wait_loaded()

    def ready_info(self) -> WorkerInfo:
        """What is loaded. Raises NotReady, with the reason, when nobody can answer now."""
        if self.info is None or self.state.phase != "ready":
            raise NotReady(f"the model cannot answer now, it is {self.state.phase}: {self.state.detail}", 5)
        return self.info

    def check_room(self) -> None:
        """Raises QueueFull when no request can be queued now, NotReady while nobody can answer."""
        self.ready_info()
        if self._running is not None and len(self._waiting) >= self._queue_size:
            raise QueueFull(self._queue_size, self._retry_after_s())

    def submit(self, requests: Sequence[Generate], arrived: float, timeout_s: float) -> Job:
        """Queue requests that take one place together (ids are given here).

        arrived:   monotonic time of the request.
        timeout_s: when this has passed since then the job ends with an error, wherever it is.

        Raises QueueFull, or NotReady while nobody can answer.
        """
        self.check_room()
        numbered = [
            msgspec.structs.replace(request, id=number)
            for number, request in enumerate(requests, start=self._next_id + 1)
        ]
        self._next_id += len(numbered)
        job = Job(numbered, self)
        left_s = max(0.0, arrived + timeout_s - time.monotonic())
        job.timer = asyncio.get_running_loop().call_later(left_s, self._expire, job, timeout_s)
        self._waiting.append(job)
        self._advance()
        return job

    def skip(self, job: Job, index: int) -> None:
        """See Job.skip."""
        if job is self._running and job.current == index:
            self.supervisor.send(Cancel(job.request.id))

    def cancel(self, job: Job) -> None:
        """See Job.cancel."""
        if job.stage != "ended":
            self._end(job, Done(job.request.id))

    def _expire(self, job: Job, timeout_s: float) -> None:
        if job.stage != "queued":
            self._end(job, RequestTimeout(timeout_s))
        elif self.state.phase == "restarting":
            self._end(job, NotReady(f"no worker was ready within {timeout_s:g} s: {self.state.detail}", 5))
        else:
            self._end(job, QueueTimeout(timeout_s, self._retry_after_s()))

    def _end(self, job: Job, item: Done | MedusaError) -> None:
        """End a job that has not ended: it leaves the queue, or the worker stops before its next step."""
        job.put(item)
        if job is self._running:
            self.supervisor.send(Cancel(job.request.id))
        elif job in self._waiting:
            self._waiting.remove(job)
        self._update_gauges()

    def _retry_after_s(self) -> int:
        """When the requests that wait now may have been answered."""
        return min(60, max(1, math.ceil(self._seconds_per_answer * (len(self._waiting) + 1))))

    def set_log_level(self, level: LogLevel) -> None:
        """What the worker, and every later one, is to log."""
        self.supervisor.set_log_level(level)

    def reload(self) -> None:
        """Let another worker load the model anew, after the running answer; what waits is kept."""
        self._is_to_reload = True
        self._advance()

    def drain(self, timeout_s: float) -> None:
        """Refuse new requests; what still runs or waits after timeout_s ends with an error."""
        # without a worker nothing would end by itself
        left_s = timeout_s if self.state.phase == "ready" else 0.0
        self.supervisor.begin_stopping()
        asyncio.get_running_loop().call_later(left_s, self._fail_all, STOPPING)

    async def stop(self) -> None:
        """End the worker and everything that waits for it."""
        self._fail_all(STOPPING)
        await self.supervisor.stop()

    def kill(self) -> None:
        """End the worker at once, for a server that has no time to stop it."""
        self.supervisor.kill()

    def on_ready(self) -> None:
        """See WorkerOwner.on_ready."""
        self._advance()

    def on_answer(self, message: TokenDelta | Done | Failed) -> None:
        """See WorkerOwner.on_answer."""
        if not isinstance(message, TokenDelta):
            self._end_running(rebuild(message.error) if isinstance(message, Failed) else message)
        elif self._running is not None:
            self._running.put(message)

    def on_lost(self, ending: Ending) -> None:
        """See WorkerOwner.on_lost; the answer is not tried again: it may be why the worker ended."""
        if self._running is not None:
            self._running.put(WorkerDied(f"{ending.message}; send the request again"))
            self._running = None
        if self.state.phase == "stopping":
            self._fail_all(STOPPING)
        self._update_gauges()

    def _end_running(self, item: Done | MedusaError) -> None:
        job = self._running
        if job is not None and job.stage != "ended" and isinstance(item, Done) and not job.is_last:
            job.current += 1
            self.supervisor.send(job.request)
            return
        if self._running is not None:
            self._running.put(item)
            self._running = None
            self._seconds_per_answer = 0.7 * self._seconds_per_answer + 0.3 * (time.monotonic() - self._dispatched)
        self._advance()

    def _advance(self) -> None:
        """Give the worker the next request when it is idle."""
        if self._running is None and self._is_to_reload:
            self._is_to_reload = False
            self.supervisor.replace()
        if self._running is None and self._waiting and self.state.phase in ("ready", "stopping"):
            job = self._waiting[0]
            if self.supervisor.send(job.request):
                self._waiting.popleft()
                self._running = job
                self._metrics.queue_time.observe(job.begin())
                self._dispatched = time.monotonic()
        self._update_gauges()

    def _update_gauges(self) -> None:
        self._metrics.running.set(0 if self._running is None else 1)
        self._metrics.waiting.set(len(self._waiting))

    def _fail_all(self, reason: str) -> None:
        """End every request, running and waiting; the running one also at the worker."""
        error = NotReady(reason, 5)
        if self._running is not None and self._running.stage != "ended":
            self.supervisor.send(Cancel(self._running.request.id))
            self._running.put(error)
        while self._waiting:
            self._waiting.popleft().put(error)
        self._update_gauges()
