"""One thread: tiny matrices gain nothing from two, and barriers stall when other processes run."""

import torch

torch.set_num_threads(1)
