"""A worker's tie to the server that started it: without one there is nobody to work for."""

import ctypes
import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process

__all__ = ["end_with_parent"]

ORPHANED = 1
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """From now on this process ends when the one that started it is gone, in whatever step or load it is.

    A thread waits for that. It cannot run while the process is stopped or a call keeps the interpreter to itself, so on
    Linux the kernel is asked to kill as well. The kernel means the parent's thread, which is the server's event loop.
    """
    parent = parent_process()
    assert parent is not None, "only a child process has a parent to end with"
    threading.Thread(target=_end_after, args=(parent.sentinel,), name="lifeline", daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(ORPHANED)
