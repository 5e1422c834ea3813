"""What a failing tensor operation means for whoever keeps the model: memory that ran out, or a device that is lost."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medusa_core.errors import DeviceFault, MedusaError, OutOfMemory

__all__ = ["fault_of", "told_as_faults"]

# Memory that ran out goes by other names than torch's own error: torch's allocator on a CPU, CUDA's libraries, and CUDA
# itself where it needs memory of its own, for the graph of a recorded step for one.
_NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
_NO_DEVICE = "CUDA error"


def fault_of(error: RuntimeError | MemoryError, out_of_memory: str) -> MedusaError | None:
    """OutOfMemory with this message, DeviceFault, or None for an error that says nothing about the device.

    After a CUDA error every later call of the process fails as well, whatever it is about.
    """
    message = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in message for words in _NO_MEMORY):
        return OutOfMemory(out_of_memory)
    if isinstance(error, torch.AcceleratorError) or _NO_DEVICE in message:
        return DeviceFault(message.partition("\n")[0])
    return None


@contextmanager
def told_as_faults(out_of_memory: str) -> Iterator[None]:
    """Raise what fault_of makes of the errors inside."""
    try:
        yield
    except OutOfMemory as error:
        raise OutOfMemory(out_of_memory) from error
    except (RuntimeError, MemoryError) as error:
        fault = fault_of(error, out_of_memory)
        if fault is None:
            raise
        raise fault from error
