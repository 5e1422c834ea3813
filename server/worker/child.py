"""One worker process, the pipe to it, and the thread that hears what it says.

Everything here runs on the event loop except that thread, which only hands messages over.
"""

import asyncio
import errno
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from server.worker.messages import FromWorker, ToWorker, decode_from_worker, encode
from server.worker.outbox import Outbox
from server.worker.process import run
from server.worker.silence import Silence

__all__ = ["Child"]

POLL_S = 0.01
# Only a process that a device holds in the kernel keeps its end of the pipe for so long.
LONGEST_JOIN_S = 1.0


class Child:
    """A process that was started, until it has ended and is closed."""

    def __init__(
        self,
        factory: str,
        on_message: Callable[[FromWorker], None],
        on_gone: Callable[[], None],
        longest_look_s: float,
    ) -> None:
        """Start the process; the event loop of the thread that does so hears of it, and it ends with both.

        factory:        `package.module:name` of the worker's EngineFactory.
        on_gone:        told when the worker's end of the pipe is closed: it has ended, or is about to.
        longest_look_s: see Silence.

        Raises OSError when the system has no room for another process, or for the thread that hears it.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run, args=(theirs, factory), name="medusa-worker", daemon=True)
        self._process.start()
        theirs.close()
        self.started_s = time.monotonic()
        self._silence = Silence(self.started_s, longest_look_s)
        self._outbox = Outbox(self._connection, asyncio.get_running_loop())
        arguments = self._connection, asyncio.get_running_loop(), on_message, on_gone
        self._reader = threading.Thread(target=self._read, args=arguments, name="worker-reader", daemon=True)
        try:
            self._reader.start()
        except RuntimeError as error:
            self._abandon()
            raise OSError(errno.EAGAIN, f"the worker would not be heard: {error}") from error

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.exitcode

    def send(self, message: ToWorker) -> bool:
        """Whether the message is under way; a worker that is gone is noticed by the reader."""
        return self._outbox.send(encode(message))

    def silent_s(self) -> float:
        """Seconds since the last sign of life, as far as this was asked often enough."""
        return self._silence.look(time.monotonic())

    def kill(self) -> None:
        """End it at once; it takes no other signal."""
        if self._process.is_alive():
            self._process.kill()

    async def has_ended(self, within_s: float) -> bool:
        """Wait for the end of one that is about to end."""
        deadline_s = time.monotonic() + within_s
        while self._process.is_alive():
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def close(self) -> None:
        """Let go of the pipe of one that has ended, which has ended the reader as well."""
        self._reader.join(LONGEST_JOIN_S)
        self._outbox.close()
        self._connection.close()

    def _abandon(self) -> None:
        """End a process that nobody would hear."""
        self._process.kill()
        self._process.join()
        self._outbox.close()
        self._connection.close()

    def _read(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[FromWorker], None],
        on_gone: Callable[[], None],
    ) -> None:
        """Body of the reader thread."""
        try:
            while True:
                message = decode_from_worker(connection.recv_bytes())
                self._silence.end()
                loop.call_soon_threadsafe(on_message, message)
        except (EOFError, OSError):
            loop.call_soon_threadsafe(on_gone)
