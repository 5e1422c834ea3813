"""Medusa-1: draft heads trained on a frozen base model.

Source: Medusa (arXiv:2401.10774), "Medusa-1: Frozen Backbone".
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medusa_core.heads import DraftHeads
from medusa_core.training.base import FrozenBase
from medusa_core.training.loop import cosine
from medusa_core.training.loss import IGNORED, HeadNats, chunks, head_nats, head_weights
from medusa_core.training.packing import PackedRows
from medusa_core.training.plan import TrainPlan
from medusa_core.training.precision import mixed_precision
from medusa_core.training.scores import HeadScores, judged_rows, score_heads
from medusa_core.training.workers import Workers

__all__ = ["HeadsRecipe", "adam", "evaluation"]


class HeadsRecipe:
    """Steps that change the heads and nothing else: each batch goes through the base once, without gradients."""

    def __init__(
        self,
        base: FrozenBase,
        heads: DraftHeads,
        trained: PackedRows,
        held_out: PackedRows,
        plan: TrainPlan,
        workers: Workers,
    ) -> None:
        self._base, self._heads, self._plan, self._workers = base, heads, plan, workers
        self._trained, self._held_out = trained, held_out
        self.steps = plan.steps(len(trained), plan.epochs)
        self._optimizer = adam([{"params": list(heads.parameters()), "lr": plan.learning_rate}])
        self._nats: HeadNats = torch.compile(head_nats, dynamic=True) if plan.compile else head_nats

    def modules(self) -> Mapping[str, nn.Module]:
        """See Recipe.modules."""
        return {"heads": self._heads}

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """See Recipe.optimizers."""
        return (self._optimizer,)

    def rate(self, step: int) -> float:
        """See Recipe.rate."""
        return cosine(step, self.steps, min(self._plan.warmup_steps, self.steps // 4))

    def accumulate(self, step: int) -> Mapping[str, float | list[float]]:
        """See Recipe.accumulate."""
        plan, heads, num_heads = self._plan, self._heads, self._heads.config.num_heads
        parts = self._trained.batch(step, plan.rows_per_step).split(plan.rows_per_pass)
        mine = parts[self._workers.rank :: self._workers.count]
        with mixed_precision(self._base.device):
            judged = [judged_rows(self._base, part, num_heads) for part in mine]
            counted = torch.zeros(num_heads, dtype=torch.long, device=heads.weight.device)
            for _, labels in judged:
                counted += (labels != IGNORED).sum(dim=1)
            counts = self._workers.sum(counted).clamp(min=1)
            weights = head_weights(num_heads, plan.decay, heads.weight.device) / counts
            total = torch.zeros(num_heads, device=heads.weight.device)
            for rows, labels in judged:
                total += self._add_gradients(rows, labels, weights)
        nats = (self._workers.sum(total) / counts).tolist()
        return {"loss": sum(plan.decay**k * own for k, own in enumerate(nats, start=1)), "head_nats": nats}

    def _add_gradients(self, rows: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Nats of each head [K] summed over rows [R, H]; `rows_per_chunk` of them have logits at a time."""
        total = torch.zeros_like(weights)
        for part, wanted in chunks(rows, labels, self._plan.chunk_rows(self._base.vocab_size)):
            nats = self._nats(self._heads, part, wanted)
            (nats * weights).sum().backward()  # type: ignore[no-untyped-call]
            total += nats.detach()
        return total

    def evaluate(self) -> Mapping[str, float | list[float]]:
        """See Recipe.evaluate."""
        return evaluation(self.scores(), self._plan.decay)

    def scores(self) -> HeadScores:
        """The heads on held-out text."""
        batches = self._held_out.in_order(self._plan.rows_per_pass)
        return score_heads(self._base, self._heads, batches, self._plan.chunk_rows(self._base.vocab_size))


def adam(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """AdamW as both recipes use it; the paper's has no weight decay either."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)


def evaluation(scores: HeadScores, decay: float) -> dict[str, float | list[float]]:
    """What the log keeps of a measurement."""
    return {
        "held_out_loss": scores.loss(decay),
        "head_nats": list(scores.nats),
        **{f"top_{ranks}": scores.top(ranks) for ranks in range(1, 6)},
        "expected_tokens_per_step": scores.expected_tokens_per_step(32),
    }
