"""Many measurements of one thing as three numbers."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Spread", "spread"]


@dataclass(frozen=True)
class Spread:
    """Median with the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


def spread(values: Iterable[float]) -> Spread:
    """The spread of at least one value; percentiles are values that occurred."""
    ordered = sorted(values)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    return Spread(statistics.median(ordered), low, high)
