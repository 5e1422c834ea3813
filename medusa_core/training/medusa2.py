"""Medusa-2: the base, or an adapter on it, trained together with the heads.

Hidden states of a base that was trained for the next token alone tell little about those behind it. Here the heads'
loss flows into the base as well, while a loss of its own keeps what it says: cross-entropy, or the divergence from
itself without the adapter. Source: Medusa (arXiv:2401.10774), "Medusa-2: Joint Training" and "Self-Distillation".
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medusa_core.heads import DraftHeads
from medusa_core.training.adapter import Adapter
from medusa_core.training.base import FrozenBase
from medusa_core.training.loop import cosine
from medusa_core.training.loss import IGNORED, chunks, head_labels, head_nats, head_weights, next_labels
from medusa_core.training.medusa1 import adam, evaluation
from medusa_core.training.packing import Batch, PackedRows
from medusa_core.training.plan import JointPlan, TrainPlan
from medusa_core.training.precision import mixed_precision
from medusa_core.training.scores import HeadScores, score_heads
from medusa_core.training.workers import Workers

__all__ = ["JointRecipe", "mean_nats", "own_nats"]


@dataclass(frozen=True)
class _Asked:
    """What a step asks of one pass: labels [K + 1, B * T], the base's own first, and the rows [R] that have any."""

    batch: Batch
    labels: Tensor
    rows: Tensor


class JointRecipe:
    """Steps that change the heads and the base, or its adapter."""

    def __init__(
        self,
        base: FrozenBase,
        adapter: Adapter | None,
        heads: DraftHeads,
        trained: PackedRows,
        held_out: PackedRows,
        plan: TrainPlan,
        joint: JointPlan,
        workers: Workers,
    ) -> None:
        """Without an adapter all weights of the base are trained, and want gradients already."""
        self._base, self._adapter, self._heads = base, adapter, heads
        self._plan, self._joint, self._workers = plan, joint, workers
        self._trained, self._held_out = trained, held_out
        self.steps = plan.steps(len(trained), joint.epochs)
        # behind a first stage the rows come in orders that the heads have not seen them in
        self._steps_before = plan.steps(len(trained), plan.epochs) if joint.two_stages else 0
        own = [parameter for parameter in base.model.parameters() if parameter.requires_grad]
        self._optimizer = adam(
            [
                {"params": own, "lr": joint.learning_rate},
                {"params": list(heads.parameters()), "lr": joint.learning_rate * joint.heads_rate},
            ]
        )

    def modules(self) -> Mapping[str, nn.Module]:
        """See Recipe.modules."""
        return {"heads": self._heads, "base": self._base.model}

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """See Recipe.optimizers."""
        return (self._optimizer,)

    def rate(self, step: int) -> float:
        """See Recipe.rate."""
        return cosine(step, self.steps, min(self._plan.warmup_steps, self.steps // 4))

    def heads_weight(self, step: int) -> float:
        """Of the heads' loss at a step: constant, or along a quarter of a sine from 0."""
        full = self._joint.heads_weight
        return full * math.sin(math.pi / 2 * (step + 1) / self.steps) if self._joint.heads_ramp else full

    def accumulate(self, step: int) -> Mapping[str, float | list[float]]:
        """See Recipe.accumulate."""
        plan, num_heads = self._plan, self._heads.config.num_heads
        parts = self._trained.batch(self._steps_before + step, plan.rows_per_step).split(plan.rows_per_pass)
        mine = range(self._workers.rank, len(parts), self._workers.count)
        asked = {index: self._ask(parts[index]) for index in mine}
        counted = torch.zeros(num_heads + 1, dtype=torch.long, device=self._base.device)
        for one in asked.values():
            counted += (one.labels != IGNORED).sum(dim=1)
        counts = self._workers.sum(counted).clamp(min=1)
        ahead = self.heads_weight(step) * head_weights(num_heads, plan.decay, counts.device)
        weights = torch.cat([ahead.new_ones(1), ahead]) / counts
        total = torch.zeros_like(weights)
        self._base.model.train()
        with mixed_precision(self._base.device):
            for index, one in asked.items():
                # dropout is drawn anew, and the same again when a run is resumed or shared out otherwise
                torch.manual_seed((plan.seed * self.steps + step) * len(parts) + index)
                total += self._add_gradients(one, weights)
        self._base.model.train(False)
        own, *nats = (self._workers.sum(total) / counts).tolist()
        heads = sum(plan.decay**k * each for k, each in enumerate(nats, start=1))
        return {"own": own, "heads": heads, "head_nats": nats}

    def _ask(self, part: Batch) -> _Asked:
        batch = part.to(self._base.device)
        labels = torch.cat([next_labels(batch)[None], head_labels(batch, self._heads.config.num_heads)]).flatten(1)
        return _Asked(batch, labels, (labels != IGNORED).any(dim=0).nonzero()[:, 0])

    def _add_gradients(self, asked: _Asked, weights: Tensor) -> Tensor:
        """Nats [K + 1] summed over a pass's rows, the base's own first.

        Logits exist for `rows_per_chunk` rows at a time: each chunk's gradients stop at the hidden states, which go
        back through the base once, when all are there.
        """
        wanted = asked.labels[:, asked.rows]
        before = self._before(asked)
        hidden = self._base.hidden(asked.batch).flatten(0, 1)[asked.rows]  # [R, H]
        leaf = hidden.detach().requires_grad_()
        total = torch.zeros_like(weights)
        size = self._plan.chunk_rows(self._base.vocab_size)
        for start in range(0, len(leaf), size):
            rows, labels = leaf[start : start + size], wanted[:, start : start + size]
            teacher = self._teacher_logits(before[start : start + size]) if before is not None else None
            own = own_nats(self._base.logits(rows), labels[0], teacher)
            nats = torch.cat([own[None], head_nats(self._heads, rows, labels[1:])])
            (nats * weights).sum().backward()  # type: ignore[no-untyped-call]
            total += nats.detach()
        if leaf.grad is not None:
            hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
        return total

    @torch.no_grad()
    def _before(self, asked: _Asked) -> Tensor | None:
        """Hidden states [R, H] of the base without its adapter; None where the data is the judge."""
        if not self._joint.self_distilled or self._adapter is None:
            return None
        with self._adapter.off():
            return self._base.hidden(asked.batch).flatten(0, 1)[asked.rows]

    @torch.no_grad()
    def _teacher_logits(self, hidden: Tensor) -> Tensor:
        with self._adapter.off() if self._adapter is not None else nullcontext():
            return self._base.logits(hidden)

    def evaluate(self) -> Mapping[str, float | list[float]]:
        """See Recipe.evaluate; the held-out loss is the one training lowers, with the heads' full weight."""
        own = mean_nats(self._base, self._batches(), self._plan.chunk_rows(self._base.vocab_size))
        measured = evaluation(self.scores(), self._plan.decay)
        ahead = measured["held_out_loss"]
        assert isinstance(ahead, float), "a loss is one number"
        return {**measured, "own_nats": own, "held_out_loss": own + self._joint.heads_weight * ahead}

    def scores(self) -> HeadScores:
        """The heads on held-out text, behind the base as it is now."""
        return score_heads(self._base, self._heads, self._batches(), self._plan.chunk_rows(self._base.vocab_size))

    def _batches(self) -> Sequence[Batch]:
        return list(self._held_out.in_order(self._plan.rows_per_pass))


def own_nats(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
    """What the base loses on rows, summed: [] nats.

    logits:  [R, V]. labels: [R] int64; IGNORED rows lose nothing.
    teacher: [R, V] logits whose distribution is the measure (KL divergence from it); None: the labels are.
    """
    if teacher is None:
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    divergence = F.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    return (divergence * (labels != IGNORED)).sum()


@torch.no_grad()
def mean_nats(base: FrozenBase, batches: Sequence[Batch], rows_per_chunk: int) -> float:
    """Mean cross-entropy of the base on judged tokens, in nats; its exponential is the perplexity."""
    lost, count = 0.0, 0
    for part in batches:
        batch = part.to(base.device)
        labels = next_labels(batch).flatten()
        chosen = labels != IGNORED
        with mixed_precision(base.device):
            rows = base.hidden(batch).flatten(0, 1)[chosen]
            for chunk, wanted in chunks(rows, labels[chosen], rows_per_chunk):
                lost += float(own_nats(base.logits(chunk), wanted, None))
                count += len(wanted)
    return lost / max(1, count)
