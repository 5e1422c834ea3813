"""The Medusa-1 loss, written plainly, and in the parts of which training sums it up in bounded memory."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from medusa_core.heads import DraftHeads
from medusa_core.training.packing import Batch

__all__ = ["IGNORED", "HeadNats", "chunks", "head_labels", "head_loss", "head_nats", "head_weights", "next_labels"]

IGNORED = -100

HeadNats = Callable[[DraftHeads, Tensor, Tensor], Tensor]
"""`head_nats`, compiled or not."""


def head_loss(logits: Tensor, tokens: Tensor, decay: float) -> Tensor:
    """Cross-entropy of all draft heads, later heads weighing less.

    Head k (1..K) reads position t and is judged on token t + k + 1.

    logits: [K, B, T, V] float, one slice per head.
    tokens: [B, T] int64; IGNORED marks positions without loss.
    decay:  head k weighs decay ** k, in (0, 1].

    Returns a scalar, the weighted sum over heads of nats per judged token. Raises ValueError when T < K + 2.
    Source: Medusa (arXiv:2401.10774), the Medusa-1 training loss.
    """
    num_heads, length = logits.shape[0], tokens.shape[-1]
    if length < num_heads + 2:
        raise ValueError(f"{num_heads} heads need at least {num_heads + 2} tokens, got {length}")
    total = logits.new_zeros(())
    for k in range(1, num_heads + 1):
        predicted, actual = logits[k - 1, :, : -(k + 1)], tokens[:, k + 1 :]
        total = total + decay**k * F.cross_entropy(predicted.flatten(0, 1), actual.flatten(), ignore_index=IGNORED)
    return total


def head_labels(batch: Batch, num_heads: int) -> Tensor:
    """What each head should say at each position.

    Returns [K, B, T] int64: slice k - 1 holds token t + k + 1 of the same example at t, IGNORED where that is not
    judged or the example has ended.
    """
    return torch.stack([_ahead(batch, k + 1) for k in range(1, num_heads + 1)])


def next_labels(batch: Batch) -> Tensor:
    """What the base should say at each position: [B, T] int64, token t + 1 at t, IGNORED as in `head_labels`."""
    return _ahead(batch, 1)


def _ahead(batch: Batch, places: int) -> Tensor:
    length = batch.tokens.shape[1]
    wanted = F.pad(torch.where(batch.judged, batch.tokens, IGNORED), (0, places), value=IGNORED)[:, places:]
    # positions that run on are those of one example; another one, or filling, starts again at 0
    reached = F.pad(batch.positions, (0, places))[:, places:]
    return torch.where(reached == batch.positions + places, wanted[:, :length], IGNORED)


def chunks(rows: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows [R, H] with their labels [..., R], at most `size` rows at a time: what has logits at once."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size], labels[..., start : start + size]


def head_nats(heads: DraftHeads, rows: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each head summed over rows [R, H] with labels [K, R]: nats [K]."""
    logits = heads(rows).float()  # [K, R, V]
    nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return nats.view_as(labels).sum(dim=1)


def head_weights(num_heads: int, decay: float, device: torch.device) -> Tensor:
    """Decay ** k of every head k: [K] float32."""
    return decay ** torch.arange(1, num_heads + 1, device=device, dtype=torch.float32)
