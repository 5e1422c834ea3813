"""Measure heads on held-out text: how often each rank is right, and the temperature that makes them honest."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from medusa_core.calibration import Calibration
from medusa_core.heads import DraftHeads
from medusa_core.training.base import FrozenBase, collate
from medusa_core.training.encoding import Example
from medusa_core.training.loss import IGNORED, head_labels

__all__ = ["best_temperature", "calibrate_heads", "judged_rows", "rank_counts"]

COUNTED_RANKS = 16
# Logits kept per head for fitting its temperature: 256 MB in float32.
KEPT_LOGITS = 2**26
LOG_TEMPERATURES = (math.log(0.25), math.log(4.0))
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def calibrate_heads(base: FrozenBase, heads: DraftHeads, batches: Iterable[Sequence[Example]]) -> Calibration:
    """Accuracy per head and rank, each divided by its own count, and a temperature per head."""
    config = heads.config
    counts = torch.zeros(config.num_heads, COUNTED_RANKS + 1, dtype=torch.long)  # the last column: further down
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(config.num_heads)]
    room = [KEPT_LOGITS // config.vocab_size] * config.num_heads
    for batch in batches:
        rows, labels = judged_rows(base, batch, config.num_heads)
        with torch.no_grad():
            logits = heads(rows.to(heads.weight.dtype)).float()  # [K, R, V]
        counts += rank_counts(logits, labels, COUNTED_RANKS).cpu()
        for head, (own, wanted) in enumerate(zip(logits, labels, strict=True)):
            chosen = (wanted != IGNORED).nonzero()[:, 0][: room[head]]
            kept[head].append((own[chosen].cpu(), wanted[chosen].cpu()))
            room[head] -= len(chosen)
    samples = counts.sum(dim=1)
    shares = counts[:, :COUNTED_RANKS] / samples.clamp(min=1)[:, None]
    return Calibration(
        accuracies=tuple(tuple(row) for row in shares.tolist()),
        samples=tuple(samples.tolist()),
        temperatures=tuple(
            best_temperature(torch.cat([own for own, _ in parts]), torch.cat([wanted for _, wanted in parts]))
            for parts in kept
        ),
    )


def judged_rows(base: FrozenBase, batch: Sequence[Example], num_heads: int) -> tuple[Tensor, Tensor]:
    """Hidden states that at least one head is judged on, and what the heads should say there.

    Returns rows [R, H] float32 and labels [K, R] int64.
    """
    tokens, judged = collate(batch, base.device)
    labels = head_labels(tokens, judged, num_heads).flatten(1)
    chosen = (labels != IGNORED).any(dim=0)
    return base.hidden(tokens).flatten(0, 1)[chosen].float(), labels[:, chosen]


def rank_counts(logits: Tensor, labels: Tensor, ranks: int) -> Tensor:
    """How often the wanted token had each rank.

    logits: [K, R, V].
    labels: [K, R] int64; IGNORED rows are not counted.

    Returns [K, ranks + 1] int64; the last column counts every rank from `ranks` on.
    """
    known = labels != IGNORED
    wanted = logits.gather(2, labels.clamp(min=0)[..., None])
    rank = (logits > wanted).sum(dim=2).clamp(max=ranks)  # [K, R]
    return torch.stack([torch.bincount(r[k], minlength=ranks + 1) for r, k in zip(rank, known, strict=True)])


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
