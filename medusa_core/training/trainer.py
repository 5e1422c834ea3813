"""Medusa-1: draft heads trained on a frozen base model.

Source: Medusa (arXiv:2401.10774), "Medusa-1: Frozen Backbone".
"""

import hashlib
import json
import logging
import math
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medusa_core.calibration import Calibration
from medusa_core.checkpoints import save_heads
from medusa_core.errors import ConfigurationError
from medusa_core.heads import DraftHeads
from medusa_core.loading import choose_device
from medusa_core.training.base import FrozenBase
from medusa_core.training.calibrate import calibrate_heads, judged_rows
from medusa_core.training.encoding import Example, read_examples
from medusa_core.training.loss import WeightedNats, chunk_losses, weighted_nats
from medusa_core.training.precision import mixed_precision
from medusa_core.training.progress import progress_bar

__all__ = ["TrainPlan", "batches", "fingerprint", "rate", "split_held_out", "train", "train_heads"]

_log = logging.getLogger(__name__)

# Batches are formed within windows of so many examples, sorted by length: little padding, still well mixed.
WINDOW = 1024


@dataclass(frozen=True)
class TrainPlan:
    """What to train and how.

    num_heads:        K.
    num_layers:       residual blocks per head.
    shared_lm_head:   whether the heads use the base's LM head instead of a trained copy each.
    decay:            head k weighs decay ** k.
    epochs:           passes over the data.
    learning_rate:    of AdamW, after the warm-up; a cosine takes it to zero.
    tokens_per_batch: padded tokens of one optimiser step.
    max_length:       longer examples are cut.
    held_out_percent: share of the examples that only measure.
    rows_per_chunk:   rows of logits in memory at a time.
    compile:          compile the loss; needs a C++ compiler, or Triton on a GPU.
    """

    num_heads: int = 4
    num_layers: int = 1
    shared_lm_head: bool = True
    decay: float = 0.8
    epochs: int = 2
    learning_rate: float = 2e-3
    warmup_steps: int = 40
    tokens_per_batch: int = 8192
    max_length: int = 2048
    gradient_norm: float = 1.0
    held_out_percent: float = 2.0
    rows_per_chunk: int = 2048
    save_every: int = 200
    compile: bool = False
    seed: int = 0


def train(model: str, data: Path, out: Path, plan: TrainPlan, device: str) -> Calibration:
    """Train heads for a model on a JSON-lines file and write them, with their calibration, to the folder `out`.

    Resumes when `out` holds the state of an interrupted run with the same plan and data.
    """
    base = FrozenBase.load(model, choose_device(device))
    examples = list(read_examples(data, base.tokenizer, plan.max_length))
    trained, held_out = split_held_out(examples, plan.held_out_percent)
    if not trained or not held_out:
        raise ConfigurationError(
            f"{data} has {len(examples)} examples with an answer to learn from; holding out {plan.held_out_percent} % "
            f"leaves {len(trained)} to train on and {len(held_out)} to measure on; give more data"
        )
    heads = DraftHeads.from_base(base.lm_head, plan.num_heads, plan.num_layers, plan.shared_lm_head)
    train_heads(base, heads, trained, plan, out)
    calibration = calibrate_heads(base, heads, batches(held_out, plan.tokens_per_batch, seed=0))
    save_heads(out, heads, model)
    calibration.save(out / "calibration.json")
    (out / "training_state.pt").unlink(missing_ok=True)
    return calibration


def train_heads(base: FrozenBase, heads: DraftHeads, examples: Sequence[Example], plan: TrainPlan, out: Path) -> None:
    """Train in place; the state in `out` is whole at any moment."""
    out.mkdir(parents=True, exist_ok=True)
    heads.to(base.device).train()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    seeds = range(plan.seed, plan.seed + plan.epochs)
    schedule = [batch for seed in seeds for batch in batches(examples, plan.tokens_per_batch, seed)]
    run = fingerprint(plan, examples)
    done = _resume(heads, optimizer, out, run)
    nats: WeightedNats = torch.compile(weighted_nats, dynamic=True) if plan.compile else weighted_nats
    with progress_bar("training heads", len(schedule), done, "step") as bar, (out / "log.jsonl").open("a") as log:
        for step in range(done, len(schedule)):
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * rate(step, len(schedule), plan.warmup_steps)
            loss = _accumulate_gradients(base, heads, schedule[step], plan, nats)
            nn.utils.clip_grad_norm_(heads.parameters(), plan.gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update(1)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            log.write(json.dumps({"step": step + 1, "loss": round(loss, 4)}) + "\n")
            if (step + 1) % plan.save_every == 0:
                log.flush()
                _save(heads, optimizer, step + 1, out, run)
    heads.eval().requires_grad_(False)


def _accumulate_gradients(
    base: FrozenBase,
    heads: DraftHeads,
    batch: Sequence[Example],
    plan: TrainPlan,
    nats: WeightedNats,
) -> float:
    """Add the batch's gradients to the heads'; returns its loss."""
    with mixed_precision(base.device):
        rows, labels = judged_rows(base, batch, plan.num_heads)
        total = 0.0
        for part in chunk_losses(heads, rows, labels, plan.decay, plan.rows_per_chunk, nats):
            part.backward()  # type: ignore[no-untyped-call]
            total += float(part.detach())
    return total


def batches(examples: Sequence[Example], tokens_per_batch: int, seed: int) -> list[list[Example]]:
    """All examples in random batches of similar length whose padded size stays within `tokens_per_batch`."""
    shuffle = random.Random(seed)
    order = list(examples)
    shuffle.shuffle(order)
    made: list[list[Example]] = []
    for start in range(0, len(order), WINDOW):
        batch: list[Example] = []
        for example in sorted(order[start : start + WINDOW], key=lambda item: len(item.tokens)):
            if batch and (len(batch) + 1) * len(example.tokens) > tokens_per_batch:
                made.append(batch)
                batch = []
            batch.append(example)
        made.append(batch)
    shuffle.shuffle(made)
    return made


def split_held_out(examples: Sequence[Example], percent: float) -> tuple[list[Example], list[Example]]:
    """Examples to train on and to measure on; a hash of the tokens decides, so equal examples stay together."""
    trained: list[Example] = []
    held_out: list[Example] = []
    for example in examples:
        digest = hashlib.sha256(repr(example.tokens).encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64 * 100.0
        (held_out if share < percent else trained).append(example)
    return trained, held_out


def rate(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def fingerprint(plan: TrainPlan, examples: Sequence[Example]) -> str:
    """What a run must share with the one it resumes."""
    digest = hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode())
    for example in examples:
        digest.update(repr(example.tokens).encode())
    return digest.hexdigest()


def _save(heads: DraftHeads, optimizer: torch.optim.Optimizer, step: int, out: Path, run: str) -> None:
    state = {"run": run, "step": step, "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
    partial = out / "training_state.pt.partial"
    torch.save(state, partial)
    os.replace(partial, out / "training_state.pt")


def _resume(heads: DraftHeads, optimizer: torch.optim.Optimizer, out: Path, run: str) -> int:
    path = out / "training_state.pt"
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, map_location=heads.weight.device, weights_only=True)
    if state["run"] != run:
        raise ConfigurationError(
            f"{path} belongs to a run with another plan or other data; delete it, or train into another folder"
        )
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    _log.info("resuming after step %d", state["step"])
    return int(state["step"])
