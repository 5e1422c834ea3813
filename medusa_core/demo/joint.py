"""Base model and heads trained together at the end, so that the hidden states also tell what comes after next.

A base that has learnt texts by heart looks one token ahead and no further: heads on its frozen states find little. Here
the base keeps its own loss and the heads' loss flows into it as well. Source: Medusa (arXiv:2401.10774), "Medusa-2:
Joint Training".
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from medusa_core.demo.packing import JudgedRows
from medusa_core.heads import DraftHeads
from medusa_core.training.loss import IGNORED, head_labels
from medusa_core.training.precision import mixed_precision

__all__ = ["JointPlan", "choose_positions", "joint_loss", "train_jointly"]


@dataclass(frozen=True)
class JointPlan:
    """How long and how fast; all rates fall linearly to zero.

    heads_weight: the heads' loss against the base's own.
    heads_share:  share of the positions that the heads are judged on in a step.
    """

    steps: int = 2000
    tokens_per_step: int = 4096
    length: int = 512
    base_lr: float = 5e-4
    heads_lr: float = 1.5e-3
    heads_weight: float = 0.6
    heads_share: float = 0.5
    decay: float = 0.8
    warmup_steps: int = 20
    gradient_norm: float = 1.0
    save_every: int = 50
    compile: bool = True
    seed: int = 0


def joint_loss(
    model: LlamaForCausalLM, heads: DraftHeads, tokens: Tensor, judged: Tensor, chosen: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    """The base's mean cross-entropy in nats, and the heads' weighted sum of theirs.

    tokens: [B, T] int64.
    judged: [B, T] bool, the tokens that either may be asked for.
    chosen: [R] int64, positions among the B * T that the heads are judged on.
    """
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    labels = torch.where(judged, tokens, IGNORED)
    logits = model.lm_head(hidden[:, :-1]).float()
    own = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    wanted = head_labels(tokens, judged, heads.config.num_heads).flatten(1)[:, chosen]  # [K, R]
    guesses = heads(hidden.flatten(0, 1)[chosen]).float()  # [K, R, V]
    nats = F.cross_entropy(guesses.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    per_head = nats.view_as(wanted).sum(dim=1) / (wanted != IGNORED).sum(dim=1)
    weights = decay ** torch.arange(1, heads.config.num_heads + 1, device=tokens.device)
    return own, (per_head * weights).sum()


def choose_positions(judged: Tensor, num_heads: int, count: int, seed: int) -> Tensor:
    """Positions [count] int64 for the heads among judged [B, T], those that ask for something before any other."""
    asked = (head_labels(judged.long(), judged, num_heads) != IGNORED).any(dim=0).flatten()
    order = torch.randperm(judged.numel(), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[asked[order]], order[~asked[order]]])[:count]


def train_jointly(
    model: LlamaForCausalLM,
    heads: DraftHeads,
    rows: JudgedRows,
    plan: JointPlan,
    folder: Path,
    device: torch.device,
    on_step: Callable[[float, float], None],
) -> None:
    """Train both in place, resuming from the folder's state. on_step receives the base's and the heads' loss."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(device).train()  # type: ignore[arg-type]
    heads.to(device).train()
    groups = [
        {"params": list(model.parameters()), "lr": plan.base_lr},
        {"params": list(heads.parameters()), "lr": plan.heads_lr},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    full = [group["lr"] for group in optimizer.param_groups]
    done = _resume(model, heads, optimizer, folder, device)
    loss_of = torch.compile(joint_loss) if plan.compile else joint_loss
    parameters = [*model.parameters(), *heads.parameters()]
    chosen_rows = int(plan.tokens_per_step * plan.heads_share)
    started = time.monotonic()
    for step in range(done, plan.steps):
        share = min((step + 1) / plan.warmup_steps, (plan.steps - step) / plan.steps)
        for group, lr in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = lr * share
        tokens, judged = rows.batch(step, plan.tokens_per_step // plan.length)
        chosen = choose_positions(judged, heads.config.num_heads, chosen_rows, plan.seed + step)
        with mixed_precision(device):
            own, ahead = loss_of(model, heads, tokens.to(device), judged.to(device), chosen.to(device), plan.decay)
            loss = own + plan.heads_weight * ahead
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, plan.gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses = float(own.detach()), float(ahead.detach())
        on_step(*losses)
        speed = round((step + 1 - done) * plan.tokens_per_step / (time.monotonic() - started))
        record = {"step": step + 1, "loss": round(losses[0], 4), "heads": round(losses[1], 4), "tokens_per_s": speed}
        with (folder / "log.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            _save(model, heads, optimizer, step + 1, folder)


def _save(model: nn.Module, heads: DraftHeads, optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    state = {"step": step, "model": model.state_dict(), "heads": heads.state_dict()}
    torch.save({**state, "optimizer": optimizer.state_dict()}, folder / "state.pt.partial")
    os.replace(folder / "state.pt.partial", folder / "state.pt")


def _resume(
    model: nn.Module, heads: DraftHeads, optimizer: torch.optim.Optimizer, folder: Path, device: torch.device
) -> int:
    path = folder / "state.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
