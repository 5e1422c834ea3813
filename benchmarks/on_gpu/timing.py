"""How long work takes on a device, on the host, and which kernels of attention it runs."""

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["Budget", "attention_kernels", "device_ms", "wait_for"]

# What attention calls itself, in PyTorch's operations and in the kernels of the libraries behind it.
_ATTENTION_WORDS = ("scaled_dot_product", "fmha", "flash", "sdpa", "attention", "attn", "varlen")


class Budget:
    """Seconds that a part of the benchmark may take; what does not fit any more is left out and named."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self.left_out: list[str] = []

    def has_room(self, name: str) -> bool:
        """Whether there is time for one measurement more."""
        if time.monotonic() < self._ends:
            return True
        self.left_out.append(name)
        return False


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_ms(work: Callable[[], object], device: torch.device, times: int, rounds: int = 5) -> float:
    """Median milliseconds of work that is issued back to back, by the device's own clock where it has one."""
    found = []
    work()
    for _ in range(rounds):
        wait_for(device)
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(times):
                work()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / times)
        else:
            started = time.perf_counter()
            for _ in range(times):
                work()
            found.append(1e3 * (time.perf_counter() - started) / times)
    return statistics.median(found)


def attention_kernels(work: Callable[[], object], device: torch.device) -> list[str]:
    """The operations and kernels of attention that work runs, by their own names."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        work()
        wait_for(device)
    names = {event.key for event in profile.key_averages()}
    return sorted(name[:100] for name in names if any(word in name.lower() for word in _ATTENTION_WORDS))
