"""How the C library hands out memory to threads."""

import ctypes

__all__ = ["MOST_ARENAS", "share_arenas"]

# glibc's number for the option.
M_ARENA_MAX = -8
MOST_ARENAS = 2


def share_arenas() -> None:
    """Let all threads share two heaps, where the library is glibc; before the first thread starts.

    It would give each thread one of its own, up to eight a core, and each keeps the most it ever needed: the threads
    that prepare requests grew the server by a seventh in 2,000 requests.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, MOST_ARENAS)
