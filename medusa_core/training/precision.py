"""Whether bfloat16 pays in training: on a processor without instructions for it, it is many times slower."""

import time
from functools import cache

import torch
from torch import Tensor

__all__ = ["bf16_pays", "mixed_precision"]

# Large enough that the product and not its dispatch is what is timed: under 20 ms in float32 on one core.
_ROWS = 512


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that is faster than float32, else a context that changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16_pays(device.type))


@cache
def bf16_pays(device_type: str) -> bool:
    """Whether a matrix product is faster in bfloat16; measured once on a CPU, taken for granted elsewhere."""
    if device_type != "cpu":
        return True
    matrix = torch.randn(_ROWS, _ROWS, generator=torch.Generator().manual_seed(0))
    return _seconds(matrix.bfloat16()) < _seconds(matrix)


def _seconds(matrix: Tensor) -> float:
    """Shortest of a few products; the first ones also warm up."""
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        taken.append(time.perf_counter() - started)
    return min(taken)
