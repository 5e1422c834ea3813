"""The server's side of the worker: a bounded queue, one running answer, a supervisor.

Everything here runs on the event loop except one reader thread per worker process, which only hands messages over.
"""

import asyncio
import logging
import math
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Literal

import msgspec

from medusa_core import errors
from medusa_core.errors import (
    EngineError,
    MedusaError,
    NotReady,
    QueueFull,
    QueueTimeout,
    RequestError,
    RequestTimeout,
    WorkerDied,
)
from server.metrics import Metrics
from server.worker.job import Job
from server.worker.messages import (
    Cancel,
    Done,
    Failed,
    FromWorker,
    Generate,
    Heartbeat,
    Load,
    LoadFailed,
    Progress,
    Ready,
    RemoteError,
    Shutdown,
    TokenDelta,
    ToWorker,
    WorkerInfo,
    decode_from_worker,
    encode,
)
from server.worker.process import run

__all__ = ["ENGINE_FACTORY", "WorkerClient", "WorkerState"]

logger = logging.getLogger("medusa.worker")

ENGINE_FACTORY = "server.worker.core_engine:load_engine"
LONGEST_BACKOFF_S = 30
# A worker that is told to end finishes its step first; one that loads or hangs is ended by force.
STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class WorkerState:
    """How the worker is, for people and probes.

    detail: the loading stage or the reason for the state.
    share:  how far loading is, 0 to 1.
    """

    phase: Literal["loading", "ready", "restarting", "failed", "stopping"]
    detail: str
    share: float


def _rebuild(remote: RemoteError) -> MedusaError:
    """The exception the worker raised; its message is complete, so its constructor is passed over."""
    cls = getattr(errors, remote.name, EngineError) if remote.name in errors.__all__ else EngineError
    error: MedusaError = cls.__new__(cls)
    error.args = (remote.message,)
    if isinstance(error, RequestError):
        error.param = remote.param
    return error


class WorkerClient:
    """Starts the worker, feeds it one request at a time, replaces it when it dies.

    load:       what the worker is to load.
    queue_size: requests that may wait while one is decoded.
    factory:    `package.module:name` of the worker's EngineFactory.
    """

    def __init__(self, load: Load, queue_size: int, metrics: Metrics, factory: str = ENGINE_FACTORY) -> None:
        self.state = WorkerState("loading", "starting the worker", 0.0)
        self.info: WorkerInfo | None = None
        self._load = load
        self._queue_size = queue_size
        self._metrics = metrics
        self._factory = factory
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._next_id = 0
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._reader: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._settled = asyncio.Event()
        self._load_error: MedusaError | None = None
        self._restart: asyncio.Task[None] | None = None
        self._failures = 0
        self._load_started = 0.0
        # a moving average, for Retry-After
        self._seconds_per_answer = 1.0
        self._dispatched = 0.0

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the worker and return; `wait_loaded` tells when it can answer."""
        self._loop = asyncio.get_running_loop()
        self._spawn()

    async def wait_loaded(self) -> WorkerInfo:
        """Wait for the first load. Raises what the engine raised, WorkerDied when the process ended."""
        await self._settled.wait()
        if self.info is None:
            raise self._load_error if self._load_error is not None else NotReady("the server is shutting down", 5)
        return self.info

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
            self._send(Cancel(job.request.id))

    def cancel(self, job: Job) -> None:
        """See Job.cancel."""
        if job.stage != "ended":
            self._end(job, Done(job.request.id))

    def _expire(self, job: Job, timeout_s: float) -> None:
        is_queued = job.stage == "queued"
        self._end(job, QueueTimeout(timeout_s, self._retry_after_s()) if is_queued else RequestTimeout(timeout_s))

    def _end(self, job: Job, item: Done | MedusaError) -> None:
        """End a job that has not ended: it leaves the queue, or the worker stops before its next step."""
        job.put(item)
        if job is self._running:
            self._send(Cancel(job.request.id))
        elif job in self._waiting:
            self._waiting.remove(job)
        self._update_gauges()

    def _retry_after_s(self) -> int:
        """When the requests that wait now may have been answered."""
        return min(60, max(1, math.ceil(self._seconds_per_answer * (len(self._waiting) + 1))))

    def drain(self, timeout_s: float) -> None:
        """Refuse new requests; what still runs after timeout_s ends with an error."""
        self.state = WorkerState("stopping", "the server is shutting down", 1.0)
        if self._loop is not None:
            self._loop.call_later(timeout_s, self._fail_all, "the server is shutting down")

    async def stop(self) -> None:
        """End the worker and everything that waits for it."""
        is_loaded = self.state.phase in ("ready", "stopping") and self.info is not None
        self.state = WorkerState("stopping", "the server is shutting down", 1.0)
        if self._restart is not None:
            self._restart.cancel()
        self._fail_all("the server is shutting down")
        self._settled.set()
        if self._process is not None:
            await asyncio.to_thread(self._end_process, self._process, is_loaded)
        self._metrics.set_worker_up(False)

    def kill(self) -> None:
        """End the worker at once, for a server that has no time to stop it; it takes no other signal."""
        if self._process is not None and self._process.is_alive():
            self._process.kill()

    def _end_process(self, process: SpawnProcess, politely: bool) -> None:
        if politely and self._send(Shutdown()):
            process.join(STOP_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
        if self._reader is not None:
            self._reader.join()
        if self._connection is not None:
            self._connection.close()

    def _spawn(self) -> None:
        assert self._loop is not None, "start() comes first"
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=run, args=(theirs, self._factory), name="medusa-worker", daemon=True)
        process.start()
        theirs.close()
        self._process, self._connection = process, ours
        self._metrics.watch_worker(process.pid)
        self._load_started = time.monotonic()
        self._load_error = None
        self._reader = threading.Thread(target=self._read, args=(ours, self._loop), name="worker-reader", daemon=True)
        self._reader.start()
        self._send(self._load)

    def _read(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Body of the reader thread."""
        try:
            while True:
                message = decode_from_worker(connection.recv_bytes())
                loop.call_soon_threadsafe(self._on_message, message)
        except (EOFError, OSError):
            loop.call_soon_threadsafe(self._on_gone)

    def _send(self, message: ToWorker) -> bool:
        """Whether the message left; a worker that is gone is noticed by the reader."""
        assert self._connection is not None, "there is a connection as soon as there is a worker"
        try:
            self._connection.send_bytes(encode(message))
        except OSError:
            return False
        return True

    def _on_message(self, message: FromWorker) -> None:
        # every message is a sign of life, and some tell of the device
        self._metrics.count_heartbeat(time.time(), message.memory if isinstance(message, Heartbeat) else {})
        if isinstance(message, TokenDelta):
            if self._running is not None:
                self._running.put(message)
        elif isinstance(message, Done):
            self._failures = 0
            self._end_running(message)
        elif isinstance(message, Failed):
            self._end_running(_rebuild(message.error))
        elif isinstance(message, Progress):
            self.state = WorkerState(self.state.phase, message.stage, message.share)
        elif isinstance(message, LoadFailed):
            self._load_error = _rebuild(message.error)
        elif isinstance(message, Ready):
            self._on_ready(message.info)

    def _on_ready(self, info: WorkerInfo) -> None:
        if self.state.phase == "stopping":
            return
        self.info = info
        self.state = WorkerState("ready", "the model is loaded", 1.0)
        self._metrics.of_model(info)
        self._metrics.load_seconds.set(time.monotonic() - self._load_started)
        self._metrics.set_worker_up(True)
        self._settled.set()
        self._advance()

    def _end_running(self, item: Done | MedusaError) -> None:
        job = self._running
        if job is not None and job.stage != "ended" and isinstance(item, Done) and not job.is_last:
            job.current += 1
            self._send(job.request)
            return
        if self._running is not None:
            self._running.put(item)
            self._running = None
            self._seconds_per_answer = 0.7 * self._seconds_per_answer + 0.3 * (time.monotonic() - self._dispatched)
        self._advance()

    def _advance(self) -> None:
        """Give the worker the next request when it is idle."""
        if self._running is None and self._waiting and self.state.phase in ("ready", "stopping"):
            job = self._waiting[0]
            if self._send(job.request):
                self._waiting.popleft()
                self._running = job
                job.stage = "prefill"
                self._dispatched = time.monotonic()
                self._metrics.queue_time.observe(self._dispatched - job.submitted)
        self._update_gauges()

    def _update_gauges(self) -> None:
        self._metrics.running.set(0 if self._running is None else 1)
        self._metrics.waiting.set(len(self._waiting))

    def _fail_all(self, reason: str) -> None:
        """End every request, running and waiting; the running one also at the worker."""
        error = NotReady(reason, 5)
        if self._running is not None and self._running.stage != "ended":
            self._send(Cancel(self._running.request.id))
            self._running.put(error)
        while self._waiting:
            self._waiting.popleft().put(error)
        self._update_gauges()

    def _on_gone(self) -> None:
        """The worker's end of the pipe is closed: the process has ended, or is about to."""
        self._metrics.set_worker_up(False)
        if self._running is not None:
            self._running.put(
                WorkerDied("the worker process died while it answered; it is restarted, send the request again")
            )
            self._running = None
        self._update_gauges()
        if self.state.phase == "stopping":
            self._fail_all(self.state.detail)
            return
        if not self._settled.is_set():
            if self._load_error is None:
                message = "the worker process ended while it loaded the model; it may have run out of memory"
                self._load_error = WorkerDied(message)
            self.state = WorkerState("failed", str(self._load_error), 0.0)
            self._settled.set()
            return
        self._failures += 1
        if self._load_error is not None:
            self._fail_all(str(self._load_error))
        reason = str(self._load_error) if self._load_error is not None else "the worker process died"
        self.state = WorkerState("restarting", reason, 0.0)
        self._restart = asyncio.get_running_loop().create_task(self._restart_worker())

    async def _restart_worker(self) -> None:
        """Start a new worker, at once after a first crash, ever later in a crash loop."""
        assert self._process is not None and self._connection is not None, "only a worker that ran is restarted"
        await asyncio.to_thread(self._process.join)
        self._connection.close()
        logger.error("the worker ended with exit code %s, starting a new one", self._process.exitcode)
        if self._failures > 1:
            await asyncio.sleep(min(LONGEST_BACKOFF_S, 2 ** (self._failures - 2)))
        self._metrics.count_restart("crash")
        self._spawn()
