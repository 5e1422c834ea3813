"""What else the machine does: figures taken beside a busy neighbour are worth little."""

import os
import time
from pathlib import Path

__all__ = ["QUIET", "busy_cores", "cores_between"]

# Cores that others may take before figures had better be taken again.
QUIET = 0.2
STAT = Path("/proc/stat")


def busy_cores(seconds: float) -> float | None:
    """Cores in use over the next seconds while this process sleeps; None where the system does not tell."""
    if not STAT.exists():
        return None
    before = STAT.read_text()
    time.sleep(seconds)
    return cores_between(before, STAT.read_text(), os.cpu_count() or 1)


def cores_between(before: str, after: str, cores: int) -> float:
    """Cores in use between two readings of the kernel's counters, whose first line is of all cores together."""
    first, last = ([int(word) for word in text.splitlines()[0].split()[1:9]] for text in (before, after))
    spent = [end - start for start, end in zip(first, last, strict=True)]
    idle = spent[3] + spent[4]  # idle, and idle while a disk is waited for
    return cores * (1.0 - idle / sum(spent)) if sum(spent) > 0 else 0.0
