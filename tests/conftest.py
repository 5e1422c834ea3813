"""What every process that runs tests does once it has collected them.

One thread: tiny matrices gain nothing from two, and barriers stall when other processes run. And what collecting leaves
behind, a million objects, is kept out of the garbage collector's way: looking through them took half a second each time
that a test, or the code it runs, asked for a collection.
"""

import gc

# They talk to a server in an environment of their own: `make test-clients`.
collect_ignore = ["clients"]


def pytest_collection_finish() -> None:
    # not above: the process that only hands tests out to others would load it too, and they would wait for that
    import torch

    torch.set_num_threads(1)
    gc.freeze()
