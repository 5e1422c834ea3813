"""The Medusa-1 loss, written plainly and in the bounded memory that training uses."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from medusa_core.heads import DraftHeads

__all__ = ["IGNORED", "WeightedNats", "chunk_losses", "head_labels", "head_loss", "weighted_nats"]

IGNORED = -100

WeightedNats = Callable[[DraftHeads, Tensor, Tensor, Tensor], Tensor]


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


def head_labels(tokens: Tensor, judged: Tensor, num_heads: int) -> Tensor:
    """What each head should say at each position.

    tokens: [B, T] int64.
    judged: [B, T] bool, the tokens that may be asked for.

    Returns [K, B, T] int64: slice k - 1 holds token t + k + 1 at t, IGNORED where that is not judged or not there.
    """
    wanted = torch.where(judged, tokens, IGNORED)
    padded = F.pad(wanted, (0, num_heads + 1), value=IGNORED)
    length = tokens.shape[1]
    return torch.stack([padded[:, k + 1 : k + 1 + length] for k in range(1, num_heads + 1)])


def chunk_losses(
    heads: DraftHeads, rows: Tensor, labels: Tensor, decay: float, chunk: int, nats: WeightedNats
) -> Iterator[Tensor]:
    """`head_loss` on chosen rows in parts that sum to it, so that only `chunk` rows of logits exist at a time.

    Call `backward` on each part before asking for the next.

    rows:   [R, H] hidden states without a graph of their own.
    labels: [K, R] int64 from `head_labels`; IGNORED marks what has no loss.
    nats:   `weighted_nats`, compiled or not.
    """
    judged = (labels != IGNORED).sum(dim=1).clamp(min=1)
    weights = decay ** torch.arange(1, labels.shape[0] + 1, device=rows.device) / judged  # [K]
    for start in range(0, rows.shape[0], chunk):
        yield nats(heads, rows[start : start + chunk], labels[:, start : start + chunk], weights)


def weighted_nats(heads: DraftHeads, rows: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy summed over rows [R, H] with labels [K, R], each head times its weight [K]."""
    logits = heads(rows).float()  # [K, R, V]
    nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return (nats.view_as(labels).sum(dim=1) * weights).sum()
