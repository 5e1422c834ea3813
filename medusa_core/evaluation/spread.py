"""Measurements as people read them: many of one thing as three numbers, and no more digits than mean something."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Spread", "rounded", "spread"]


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


def rounded(value: Any) -> Any:
    """Numbers in any nest of lists and dicts with as many digits as mean something: five."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value
