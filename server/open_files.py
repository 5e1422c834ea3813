"""Open files: as many as the system allows, and never more connections than leave some for everything else."""

import asyncio
import errno
import logging
import resource
from collections.abc import Callable
from typing import Any

__all__ = ["KEPT_FREE", "ScarceFiles", "connections_within", "raise_limit"]

# Pipes of the worker and of the one that replaces it, the log, the event loop, tokenizers that are read anew.
KEPT_FREE = 32
# Beyond this nobody has asked for more, and children that close all they could have open take ever longer.
MOST = 65536
# Once is enough to know it; asyncio tells of every single connection that it could not accept.
TELL_EVERY_S = 60.0
SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

logger = logging.getLogger("medusa.server")


def raise_limit() -> int:
    """Let this process open as many files as its limits allow it to allow itself; returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MOST if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def connections_within(wanted: int, files: int) -> int:
    """How many of the connections wanted a limit of open files leaves room for; at least one."""
    return max(1, min(wanted, files - KEPT_FREE))


class ScarceFiles:
    """An event loop's handler of errors that tells once in a while, not thousands of times, that files run out.

    now_s: a clock that never goes back.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._told: float | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what the loop has to say; see asyncio's call_exception_handler."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in SCARCE:
            loop.default_exception_handler(context)
            return
        now_s = self._now_s()
        if self._told is None or now_s - self._told >= TELL_EVERY_S:
            self._told = now_s
            logger.warning("clients wait for a connection: %s; raise the limit of open files", error.strerror)
