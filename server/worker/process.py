"""The worker process: owns the engine, answers one request after another.

Its loop reads the pipe while idle; while it generates, the engine asks `should_stop` before every step and
prefill chunk, and that is where a Cancel is read and where the server hears that the worker lives.
"""

import importlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Protocol

from medusa_core.errors import DeviceFault, MedusaError, OutOfMemory, RequestError
from server.logs import ToldCrash, bound, configure_logs, set_level
from server.worker.lifeline import end_with_parent
from server.worker.messages import (
    Cancel,
    Done,
    Ending,
    Failed,
    FromWorker,
    Generate,
    Heartbeat,
    Load,
    LoadFailed,
    Progress,
    Ready,
    RemoteError,
    SetLogLevel,
    Shutdown,
    TokenDelta,
    WorkerInfo,
    decode_to_worker,
    encode,
)

__all__ = ["EngineFactory", "WorkerEngine", "quiet_libraries", "run"]

logger = logging.getLogger("medusa.worker")

HEARTBEAT_S = 1.0
# Answers in a row for which no memory was left, before a new process is to find some.
MOST_SHORTAGES = 2


class WorkerEngine(Protocol):
    """What the worker needs of an engine, in the words of the messages."""

    @property
    def info(self) -> WorkerInfo:
        """What was loaded."""
        ...

    def device_memory(self) -> dict[str, int]:
        """Bytes of the device by kind; empty where there is nothing to tell."""
        ...

    def generate(self, request: Generate, should_stop: Callable[[], bool]) -> Iterator[TokenDelta]:
        """Answer one prompt; ends early when should_stop turns true. Raises RequestError for a refused request."""
        ...


EngineFactory = Callable[[Load, Callable[[str, float], None]], WorkerEngine]


def quiet_libraries() -> None:
    """Keep out of the log what libraries remark about themselves, before they are imported."""
    # torchao warns wherever it is installed of each kernel made for another machine, and torch of torchao
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _factory(path: str) -> EngineFactory:
    """The function that `package.module:name` stands for."""
    module, _, name = path.partition(":")
    factory: EngineFactory = getattr(importlib.import_module(module), name)
    return factory


def _remote(error: Exception) -> RemoteError:
    name = type(error).__name__ if isinstance(error, MedusaError) else "EngineError"
    message = str(error) if isinstance(error, MedusaError) else f"the engine failed: {type(error).__name__}: {error}"
    return RemoteError(name, message, error.param if isinstance(error, RequestError) else None)


class _Worker:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._is_ending = False
        self._shortages = 0
        self._last_sent = 0.0

    def send(self, message: FromWorker) -> None:
        self._connection.send_bytes(encode(message))
        self._last_sent = time.monotonic()

    def should_stop(self, engine: WorkerEngine, running: int) -> bool:
        """Whether the answer `running` is no longer wanted; reads what has arrived without waiting."""
        if time.monotonic() - self._last_sent >= HEARTBEAT_S:
            self.send(Heartbeat(engine.device_memory()))
        while self._connection.poll():
            message = decode_to_worker(self._connection.recv_bytes())
            if isinstance(message, Shutdown):
                self._is_ending = True
            elif isinstance(message, SetLogLevel):
                set_level(message.level)
            elif not isinstance(message, Cancel):
                raise AssertionError(f"{type(message).__name__} was sent to a busy worker")
            elif message.id == running:
                return True
        return self._is_ending

    def answer(self, engine: WorkerEngine, request: Generate) -> None:
        logger.debug("answering", extra={"prompt_tokens": len(request.prompt), "max_tokens": request.max_tokens})
        try:
            for delta in engine.generate(request, lambda: self.should_stop(engine, request.id)):
                self.send(delta)
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            if not isinstance(error, RequestError):
                logger.exception("answer %d failed", request.id)
            self._end_if_hopeless(error)
            self.send(Failed(request.id, _remote(error)))
        else:
            self._shortages = 0
            self.send(Done(request.id))

    def _end_if_hopeless(self, error: Exception) -> None:
        """Make room for another process where this one will not answer again."""
        self._shortages += isinstance(error, OutOfMemory)
        if isinstance(error, DeviceFault):
            ending = Ending("crash", str(error))
        elif self._shortages >= MOST_SHORTAGES:
            ending = Ending("oom", f"no memory was left for {self._shortages} requests in a row")
        else:
            return
        # told first, so that the server sends nothing more
        self.send(ending)
        self._is_ending = True

    def serve(self, engine: WorkerEngine) -> None:
        while not self._is_ending:
            self.send(Heartbeat(engine.device_memory()))
            if not self._connection.poll(HEARTBEAT_S):
                continue
            message = decode_to_worker(self._connection.recv_bytes())
            if isinstance(message, Generate):
                with bound(request_id=message.request_id):
                    self.answer(engine, message)
            elif isinstance(message, SetLogLevel):
                set_level(message.level)
            elif isinstance(message, Shutdown):
                return
            # a Cancel that arrives here came too late: its answer has ended

    def run(self, factory: str) -> None:
        load = decode_to_worker(self._connection.recv_bytes())
        if not isinstance(load, Load):
            raise AssertionError("the first message to a worker is Load")
        configure_logs(load.log_format, load.log_level, "worker")
        quiet_libraries()
        try:
            engine = _factory(factory)(load, lambda stage, share: self.send(Progress(stage, share)))
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            if not isinstance(error, MedusaError):
                logger.exception("loading %s failed", load.model)
            self.send(LoadFailed(_remote(error)))
            return
        self.send(Ready(engine.info))
        self.serve(engine)


def run(connection: Connection, factory: str) -> None:
    """Body of the worker process: load what the first message says, then answer until Shutdown.

    connection: the worker's end of a duplex pipe.
    factory:    `package.module:name` of an EngineFactory.
    """
    # Ctrl-C reaches the whole process group and systemd's signals the whole unit; only the server, which still
    # drains, decides when the worker ends, and what it logs.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    with ToldCrash():
        try:
            _Worker(connection).run(factory)
        except (EOFError, ConnectionError):
            # the server is gone, and nobody is left to answer
            return
