"""Measure heads on held-out text: how often each rank is right, and the temperature that makes them honest."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from medusa_core.calibration import Calibration
from medusa_core.heads import DraftHeads
from medusa_core.training.base import FrozenBase
from medusa_core.training.loss import IGNORED
from medusa_core.training.packing import Batch
from medusa_core.training.plan import rows_with_logits
from medusa_core.training.scores import HeadScores, score_heads

__all__ = ["best_temperature", "calibrate_heads", "measure_heads"]

# Logits kept per head for fitting its temperature: 256 MB in float32.
KEPT_LOGITS = 2**26
# Positions whose logits are in memory at a time, at most.
ROWS_PER_CHUNK = 1024
LOG_TEMPERATURES = (math.log(0.25), math.log(4.0))
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def calibrate_heads(base: FrozenBase, heads: DraftHeads, batches: Iterable[Batch]) -> Calibration:
    """Accuracy per head and rank, each divided by its own count, and a temperature per head."""
    return measure_heads(base, heads, batches)[1]


def measure_heads(base: FrozenBase, heads: DraftHeads, batches: Iterable[Batch]) -> tuple[HeadScores, Calibration]:
    """Scores and calibration from one pass over the batches."""
    kept = _Kept(heads.config.num_heads, KEPT_LOGITS // base.vocab_size)
    size = min(ROWS_PER_CHUNK, rows_with_logits(heads.config.num_heads, base.vocab_size))
    scores = score_heads(base, heads, batches, size, kept.keep)
    return scores, Calibration(scores.accuracies, scores.samples, kept.temperatures())


class _Kept:
    """Logits of each head with the tokens that it should have said, as far as there is room."""

    def __init__(self, num_heads: int, room: int) -> None:
        self._parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(num_heads)]
        self._room = [room] * num_heads

    def keep(self, logits: Tensor, labels: Tensor) -> None:
        for head, (own, wanted) in enumerate(zip(logits, labels, strict=True)):
            reachable = own.gather(1, wanted.clamp(min=0)[:, None])[:, 0].isfinite() & (wanted != IGNORED)
            chosen = reachable.nonzero()[:, 0][: self._room[head]]
            self._parts[head].append((own[chosen].cpu(), wanted[chosen].cpu()))
            self._room[head] -= len(chosen)

    def temperatures(self) -> tuple[float, ...]:
        return tuple(
            best_temperature(torch.cat([own for own, _ in parts]), torch.cat([wanted for _, wanted in parts]))
            for parts in self._parts
        )


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature in [1/4, 4] under which the labels are likeliest; 1 when there are none.

    logits: [R, V]. labels: [R] int64.
    """
    if not len(labels):
        return 1.0

    def nats(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / math.exp(log_temperature), labels))

    return math.exp(_golden_section(nats, *LOG_TEMPERATURES))


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is lowest, to a hundredth."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > 0.01:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2.0
