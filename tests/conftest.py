"""One thread: tiny matrices gain nothing from two, and barriers stall when other processes run."""

import torch

torch.set_num_threads(1)

# They talk to a server in an environment of their own: `make test-clients`.
collect_ignore = ["clients"]
