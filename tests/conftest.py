"""One thread: tiny matrices gain nothing from two, and barriers stall when other processes run.

What collecting leaves behind, a million objects, is kept out of the garbage collector's way: looking through them took
half a second each time that a test, or the code it runs, asked for a collection.
"""

import gc

import torch

torch.set_num_threads(1)

# They talk to a server in an environment of their own: `make test-clients`.
collect_ignore = ["clients"]


def pytest_collection_finish() -> None:
    """Keep what has been collected for good."""
    gc.freeze()
