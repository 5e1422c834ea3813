"""Why a worker ended, in words for people and for medusa_worker_restarts_total."""

import signal

from medusa_core.errors import MedusaError, OutOfMemory
from server.worker.messages import Ending

__all__ = ["REPLACED", "ending_by_exit", "ending_by_failed_load", "ending_by_silence"]

REPLACED = Ending("manual", "the worker is replaced, as was asked for")


def ending_by_exit(code: int | None) -> Ending:
    """What an exit code tells of a worker that ended without a word; None where there is no code."""
    if code == -signal.SIGKILL:
        # This server kills a worker for its silence only, and then it knows.
        return Ending(
            "oom",
            "the worker process was killed by signal 9, probably by the kernel because the machine had no memory left: "
            "see its log, and start the server with a smaller --max-context or --prefix-cache",
        )
    if code is not None and code < 0:
        return Ending("crash", f"the worker process was ended by signal {-code} ({signal.strsignal(-code)})")
    return Ending("crash", f"the worker process ended with exit code {code}")


def ending_by_failed_load(error: MedusaError) -> Ending:
    """A worker that could not load its model."""
    return Ending("oom" if isinstance(error, OutOfMemory) else "crash", str(error))


def ending_by_silence(limit_s: float) -> Ending:
    """A worker that hung."""
    return Ending("hang", f"the worker gave no sign of life for {limit_s:g} s and was killed")
