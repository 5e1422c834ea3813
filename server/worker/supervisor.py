"""Keeps one worker process running: starts it, waits for signs of life, and replaces it when it ends or hangs."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from medusa_core import errors
from medusa_core.errors import EngineError, MedusaError, NotReady, RequestError, WorkerDied
from server.logs import LogLevel
from server.metrics import Metrics
from server.worker.child import Child
from server.worker.endings import REPLACED, ending_by_exit, ending_by_failed_load, ending_by_silence
from server.worker.messages import (
    Done,
    Ending,
    Failed,
    FromWorker,
    Heartbeat,
    Load,
    LoadFailed,
    Progress,
    Ready,
    RemoteError,
    SetLogLevel,
    Shutdown,
    TokenDelta,
    ToWorker,
    WorkerInfo,
)

__all__ = ["STOPPING", "Supervisor", "WorkerOwner", "WorkerState", "rebuild"]

logger = logging.getLogger("medusa.worker")

STOPPING = "the server is shutting down"
LONGEST_BACKOFF_S = 30
# A worker that is to end finishes its step first; one that has not after this is ended by force.
STOP_TIMEOUT_S = 3.0
# A load may be silent for long, so its patience is what the first one took in all, so many times.
LOAD_PATIENCE = 10
LOOK_S = 0.5


@dataclass(frozen=True)
class WorkerState:
    """How the worker is, for people and probes.

    detail: the loading stage or the reason for the state.
    share:  how far loading is, 0 to 1.
    """

    phase: Literal["loading", "ready", "restarting", "failed", "stopping"]
    detail: str
    share: float


class WorkerOwner(Protocol):
    """Who gives the worker its work."""

    def on_ready(self) -> None:
        """The worker can answer."""
        ...

    def on_answer(self, message: TokenDelta | Done | Failed) -> None:
        """The worker has said this of the answer that it was asked for."""
        ...

    def on_lost(self, ending: Ending) -> None:
        """The worker has ended, and with it the answer it was at; may be told twice."""
        ...


def rebuild(remote: RemoteError) -> MedusaError:
    """The exception the worker raised; its message is complete, so its constructor is passed over."""
    cls = getattr(errors, remote.name, EngineError) if remote.name in errors.__all__ else EngineError
    error: MedusaError = cls.__new__(cls)
    error.args = (remote.message,)
    if isinstance(error, RequestError):
        error.param = remote.param
    return error


class Supervisor:
    """One worker process after another, never two at a time.

    state: how the present one is.
    info:  what was loaded last; None before the first load.
    """

    def __init__(
        self, load: Load, step_timeout_s: float | None, metrics: Metrics, factory: str, owner: WorkerOwner
    ) -> None:
        """A supervisor of nothing yet.

        load:           what each worker is to load.
        step_timeout_s: a loaded worker that is silent for longer hangs; None waits for ever.
        factory:        `package.module:name` of the worker's EngineFactory.
        """
        self.state = WorkerState("loading", "starting the worker", 0.0)
        self.info: WorkerInfo | None = None
        self._load, self._step_timeout_s, self._metrics, self._factory = load, step_timeout_s, metrics, factory
        self._owner = owner
        self._child: Child | None = None
        self._watch: asyncio.Task[None] | None = None
        self._succession: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._load_error: MedusaError | None = None
        # why the present worker is about to end, and why the last one has ended
        self._ending: Ending | None = None
        self._last_ending: Ending | None = None
        self._failures = 0
        self._first_load_s = 0.0

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return self._child.pid if self._child is not None else None

    async def wait_loaded(self) -> WorkerInfo:
        """Wait for the first load. Raises what the engine raised, WorkerDied when the process ended."""
        await self._settled.wait()
        if self.info is None:
            raise self._load_error if self._load_error is not None else NotReady(STOPPING, 5)
        return self.info

    def start(self) -> None:
        """Start a worker; raises OSError when the system has no room for it. See Child for whom it ends with."""
        self._child = Child(self._factory, self._on_message, self._on_gone, longest_look_s=2 * LOOK_S)
        self._metrics.watch_worker(self._child.pid)
        self._load_error = self._ending = None
        self._watch = asyncio.get_running_loop().create_task(self._listen(self._child))
        self._child.send(self._load)

    def send(self, message: ToWorker) -> bool:
        """Whether the message left for the worker."""
        return self._child is not None and self._child.send(message)

    def set_log_level(self, level: LogLevel) -> None:
        """What the worker, and every later one, is to log."""
        self._load = msgspec.structs.replace(self._load, log_level=level)
        self.send(SetLogLevel(level))

    def replace(self) -> None:
        """Let another worker load the model anew; the present one must be idle. Nothing while none is ready."""
        if self.state.phase == "ready":
            self._expect(REPLACED)
            self.send(Shutdown())

    def begin_stopping(self) -> None:
        """From now on a worker that ends is not replaced."""
        self.state = WorkerState("stopping", STOPPING, 1.0)

    def _is_stopping(self) -> bool:
        return self.state.phase == "stopping"

    async def stop(self) -> None:
        """End the worker."""
        is_loaded = self.state.phase in ("ready", "stopping") and self.info is not None
        self.begin_stopping()
        for task in (self._watch, self._succession):
            if task is not None:
                task.cancel()
        self._settled.set()
        self._metrics.set_worker_up(False)
        child = self._child
        if child is None:
            return
        if not (is_loaded and child.send(Shutdown()) and await child.has_ended(STOP_TIMEOUT_S)):
            child.kill()
            await child.has_ended(STOP_TIMEOUT_S)
        child.close()

    def _running(self) -> Child:
        assert self._child is not None, "only a worker that was started is heard of"
        return self._child

    def kill(self) -> None:
        """End the worker at once."""
        if self._child is not None:
            self._child.kill()

    async def _listen(self, child: Child) -> None:
        """Kill the worker when it hangs."""
        while True:
            await asyncio.sleep(LOOK_S)
            limit_s, silent_s = self._patience_s(), child.silent_s()
            if limit_s is not None and silent_s > limit_s:
                # told at once: a process that waits for a device may not even be killed before that answers
                self._owner.on_lost(self._expect(ending_by_silence(limit_s)))
                child.kill()
                return

    def _patience_s(self) -> float | None:
        """How long the worker may be silent now; None is for ever, as at the first load: nobody knows what it takes."""
        if self._step_timeout_s is None or self.info is None:
            return None
        is_loading = self.state.phase == "restarting"
        return max(self._step_timeout_s, LOAD_PATIENCE * self._first_load_s) if is_loading else self._step_timeout_s

    def _expect(self, ending: Ending) -> Ending:
        """The present worker is about to end, or made to when it takes too long; the first reason for it counts."""
        if self._ending is None:
            self._ending = ending
            asyncio.get_running_loop().call_later(STOP_TIMEOUT_S, self._running().kill)
        if self.state.phase == "ready":
            # it is given no more work
            self.state = WorkerState("restarting", self._ending.message, 0.0)
        return self._ending

    def _on_message(self, message: FromWorker) -> None:
        # every message is a sign of life, and some tell of the device
        self._metrics.count_heartbeat(time.time(), message.memory if isinstance(message, Heartbeat) else {})
        if isinstance(message, TokenDelta | Done | Failed):
            self._failures = 0 if isinstance(message, Done) else self._failures
            self._owner.on_answer(message)
        elif isinstance(message, Progress):
            self._on_progress(message)
        elif isinstance(message, LoadFailed):
            self._load_error = rebuild(message.error)
            self._expect(ending_by_failed_load(self._load_error))
        elif isinstance(message, Ready):
            self._on_ready(message.info)
        elif isinstance(message, Ending):
            self._expect(message)

    def _on_progress(self, progress: Progress) -> None:
        if self.state.phase in ("loading", "restarting"):
            since = f" ({self._last_ending.message})" if self._last_ending is not None else ""
            self.state = WorkerState(self.state.phase, progress.stage + since, progress.share)

    def _on_ready(self, info: WorkerInfo) -> None:
        if self._is_stopping():
            return
        seconds = time.monotonic() - self._running().started_s
        self._first_load_s = self._first_load_s if self.info is not None else seconds
        self.info = info
        self.state = WorkerState("ready", "the model is loaded", 1.0)
        self._metrics.of_model(info)
        self._metrics.load_seconds.set(seconds)
        self._metrics.set_worker_up(True)
        self._settled.set()
        self._owner.on_ready()

    def _on_gone(self) -> None:
        """The worker's end of the pipe is closed: the process has ended, or is about to."""
        self._metrics.set_worker_up(False)
        if self.state.phase == "ready":
            self.state = WorkerState("restarting", "the worker process has ended", 0.0)
        self._succession = asyncio.get_running_loop().create_task(self._succeed())

    async def _succeed(self) -> None:
        """Bury a worker, tell why it ended, and start the next one, ever later where one after another ends."""
        child = self._running()
        while not await child.has_ended(STOP_TIMEOUT_S):
            child.kill()
        if self._watch is not None:
            self._watch.cancel()
        child.close()
        ending = self._ending if self._ending is not None else ending_by_exit(child.exit_code)
        if self.info is None and self.state.phase == "loading":
            self._fail_first(ending)
        self._owner.on_lost(ending)
        if self._is_stopping() or self.state.phase == "failed":
            return
        self._failures += ending.reason != "manual"
        while True:
            delay_s = 0 if self._failures < 2 else min(LONGEST_BACKOFF_S, 2 ** (self._failures - 2))
            level = logging.INFO if ending.reason == "manual" else logging.ERROR
            logger.log(
                level, "%s; another is started in %d s", ending.message, delay_s, extra={"reason": ending.reason}
            )
            self._last_ending, self.state = ending, WorkerState("restarting", ending.message, 0.0)
            await asyncio.sleep(delay_s)
            if self._is_stopping():
                return
            self._metrics.count_restart(ending.reason)
            try:
                self.start()
                return
            except OSError as error:
                ending = Ending("crash", f"no worker process can be started: {error.strerror}")
                self._failures += 1

    def _fail_first(self, ending: Ending) -> None:
        """The first load failed, which says that the server was asked for what cannot be done."""
        if self._load_error is None:
            self._load_error = WorkerDied(f"while it loaded the model, {ending.message}")
        self.state = WorkerState("failed", str(self._load_error), 0.0)
        self._settled.set()
