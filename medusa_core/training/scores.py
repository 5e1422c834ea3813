"""How good heads are on text they were not trained on: loss, accuracy per rank, tokens per step to expect."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from medusa_core.calibration import Calibration
from medusa_core.heads import DraftHeads
from medusa_core.training.base import FrozenBase
from medusa_core.training.loss import IGNORED, chunks, head_labels
from medusa_core.training.packing import Batch
from medusa_core.training.precision import mixed_precision

__all__ = ["COUNTED_RANKS", "HeadScores", "judged_rows", "over_all_tokens", "rank_counts", "score_heads"]

COUNTED_RANKS = 16


@dataclass(frozen=True)
class HeadScores:
    """Measurements of K heads.

    nats:       [K], mean cross-entropy.
    accuracies: [K][R], share of samples in which the true token was the head's guess of exactly this rank.
    samples:    [K], what both are divided by; later heads see fewer positions.
    """

    nats: tuple[float, ...]
    accuracies: tuple[tuple[float, ...], ...]
    samples: tuple[int, ...]

    def top(self, ranks: int) -> list[float]:
        """How often the true token is among so many guesses of each head."""
        return [sum(shares[:ranks]) for shares in self.accuracies]

    def loss(self, decay: float) -> float:
        """The loss that training lowers: nats of head k times decay ** k, summed."""
        return sum(decay**k * nats for k, nats in enumerate(self.nats, start=1))

    def expected_tokens_per_step(self, num_nodes: int) -> float:
        """Of the best static tree with so many nodes, heads taken as independent."""
        ones = (1.0,) * len(self.samples)
        return Calibration(self.accuracies, self.samples, ones).expected_tokens_per_step(num_nodes)


@torch.no_grad()
def score_heads(
    base: FrozenBase,
    heads: DraftHeads,
    batches: Iterable[Batch],
    rows_per_chunk: int,
    look: Callable[[Tensor, Tensor], None] | None = None,
) -> HeadScores:
    """Measure heads on whole batches, `rows_per_chunk` rows of logits in memory at a time.

    look: is shown each chunk's logits [K, R, V] and labels [K, R] on the way; None where nobody looks.
    """
    num_heads = heads.config.num_heads
    counts = torch.zeros(num_heads, COUNTED_RANKS + 1, dtype=torch.long)
    nats = torch.zeros(num_heads, dtype=torch.float64)
    for batch in batches:
        with mixed_precision(base.device):
            rows, labels = judged_rows(base, batch, num_heads)
            for part, wanted in chunks(rows, labels, rows_per_chunk):
                logits = over_all_tokens(heads, heads(part.to(heads.weight.dtype)).float(), base.vocab_size)
                counts += rank_counts(logits, wanted, COUNTED_RANKS).cpu()  # the last column: further down
                if look is not None:
                    look(logits, wanted)
                lost = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
                )
                nats += lost.view_as(wanted).sum(dim=1).double().cpu()
    samples = counts.sum(dim=1)
    shares = counts[:, :COUNTED_RANKS] / samples.clamp(min=1)[:, None]
    return HeadScores(
        nats=tuple((nats / samples.clamp(min=1)).tolist()),
        accuracies=tuple(tuple(row) for row in shares.tolist()),
        samples=tuple(samples.tolist()),
    )


@torch.no_grad()
def judged_rows(base: FrozenBase, batch: Batch, num_heads: int) -> tuple[Tensor, Tensor]:
    """Hidden states that at least one head is judged on, and what the heads should say there.

    Returns rows [R, H] float32 and labels [K, R] int64.
    """
    there = batch.to(base.device)
    labels = head_labels(there, num_heads).flatten(1)
    chosen = (labels != IGNORED).any(dim=0)
    return base.hidden(there).flatten(0, 1)[chosen].float(), labels[:, chosen]


def over_all_tokens(heads: DraftHeads, logits: Tensor, vocab_size: int) -> Tensor:
    """Logits [K, R, V] of the tokens that heads draft as [K, R, W], one for each token; -inf where they never do."""
    if heads.token_ids is None and logits.shape[-1] == vocab_size:
        return logits
    columns = heads.as_tokens(torch.arange(logits.shape[-1], device=logits.device))
    everything = logits.new_full((*logits.shape[:-1], vocab_size), -torch.inf)
    return everything.index_copy(-1, columns, logits)


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
