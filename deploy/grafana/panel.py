"""What a panel is, and how the expressions of panels are put together."""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "MODEL",
    "SERVER",
    "Panel",
    "Query",
    "Row",
    "counts",
    "in_range",
    "mean",
    "rate",
    "share",
    "spread",
    "summed",
]

# Series of a model, and those that a server has whatever model it serves.
MODEL = 'model_name=~"$model_name", instance=~"$instance"'
SERVER = 'instance=~"$instance"'
QUANTILES = (0.5, 0.9, 0.95, 0.99)

Kind = Literal["figure", "lines", "heatmap", "states", "table"]
Threshold = tuple[float | None, str]


@dataclass(frozen=True)
class Query:
    """An expression and what its series are called."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    description: a sentence for whoever sees the figure for the first time.
    unit:        as Grafana names it.
    thresholds:  the colour from each value on, the first one from None; empty leaves colours to the series.
    width:       of 24 columns.
    height:      in rows of about 30 pixels.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    thresholds: tuple[Threshold, ...] = ()
    width: int = 8
    height: int = 8
    is_stacked: bool = False
    maximum: float | None = None
    minimum: float | None = 0.0
    decimals: int | None = None


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, labels: str = MODEL) -> str:
    """Rise per second of every series."""
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


def in_range(metric: str) -> str:
    """Rise of every series over all the time that is shown."""
    return f"increase({metric}{{{MODEL}}}[$__range])"


def summed(metric: str, by: str | None = None, labels: str = MODEL) -> str:
    """Rise per second, summed by labels or over everything."""
    return f"sum{'' if by is None else f' by ({by}) '}({rate(metric, labels)})"


def share(above: str, below: str, by: str | None = None) -> str:
    """How much of one counter's rise is another's; without a value where nothing happened."""
    return f"{summed(above, by)} / ({summed(below, by)} > 0)"


def mean(histogram: str, by: str | None = None) -> str:
    """Mean of what was observed."""
    return share(f"{histogram}_sum", f"{histogram}_count", by)


def spread(histogram: str) -> tuple[Query, ...]:
    """Quantiles and the mean over all servers."""
    buckets = summed(f"{histogram}_bucket", "le")
    quantiles = (Query(f"histogram_quantile({q:g}, {buckets})", f"p{100 * q:g}") for q in QUANTILES)
    return (*quantiles, Query(mean(histogram), "mean"))


def counts(histogram: str) -> tuple[Query, ...]:
    """Observations by bucket, for a heatmap."""
    return (Query(f"sum by (le) (increase({histogram}_bucket{{{MODEL}}}[$__rate_interval]))", "{{le}}"),)
