"""Pre-training of the demo model: Muon for the matrices, AdamW for the rest, a constant rate that decays at the end."""

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medusa_core.demo.packing import Mixture, labels_for
from medusa_core.training.precision import mixed_precision

__all__ = [
    "ModelShape",
    "PretrainPlan",
    "build_model",
    "decay_steps",
    "evaluate",
    "is_decaying",
    "language_loss",
    "optimizers",
    "pretrain",
    "rate",
    "steps_done",
]

log = logging.getLogger(__name__)
IGNORED = -100


@dataclass(frozen=True)
class ModelShape:
    """The demo model's size: 5.2 M parameters, embeddings shared with the LM head."""

    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 640
    max_positions: int = 2048


@dataclass(frozen=True)
class PretrainPlan:
    """How long and how fast to train."""

    steps: int = 3000
    tokens_per_step: int = 8192
    length: int = 512
    long_length: int = 2048
    long_every: int = 16  # every so many steps one uses the long rows
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 60
    decay_share: float = 0.4
    decay_chat_share: float = 0.7  # conversations among the tokens of the decay, which is when most is memorised
    gradient_norm: float = 1.0
    save_every: int = 200
    evaluate_every: int = 200
    compile: bool = True  # needs a C++ compiler, or Triton on a GPU; twice as fast
    seed: int = 0


def build_model(shape: ModelShape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights; the residual outputs start small."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.num_layers))
    return model


def optimizers(model: nn.Module, plan: PretrainPlan) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=plan.matrix_lr, weight_decay=plan.weight_decay, momentum=0.95),
        torch.optim.AdamW(others, lr=plan.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int, plan: PretrainPlan) -> float:
    """Share of the full learning rate at a step: warm-up, constant, linear decay to zero."""
    return min(1.0, (step + 1) / plan.warmup_steps, max(0.0, (plan.steps - step) / decay_steps(plan)))


def decay_steps(plan: PretrainPlan) -> int:
    """Steps over which the rate falls to zero."""
    return max(1, int(plan.steps * plan.decay_share))


def is_decaying(step: int, plan: PretrainPlan) -> bool:
    """Whether the rate is falling already."""
    return plan.steps - step < decay_steps(plan)


def language_loss(model: LlamaForCausalLM, tokens: Tensor, filler: int) -> Tensor:
    """Mean next-token cross-entropy in nats over tokens [B, T]."""
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1]).float()
    labels = labels_for(tokens, filler, IGNORED)[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def pretrain(
    model: LlamaForCausalLM,
    mixture: Mixture,
    held_out: dict[str, Tensor],
    plan: PretrainPlan,
    folder: Path,
    device: torch.device,
    on_step: Callable[[float], None],
) -> None:
    """Train in place, resuming from the folder's last checkpoint when there is one.

    held_out: token ids [B, T] by name, measured now and then. on_step receives the loss of each step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.to(device)  # type: ignore[arg-type]
    optims = optimizers(model, plan)
    done = _resume(model, optims, folder, device)
    train_loss = torch.compile(language_loss) if plan.compile else language_loss
    started, seen = time.monotonic(), 0
    for step in range(done, plan.steps):
        length = plan.long_length if step % plan.long_every == plan.long_every - 1 else plan.length
        seen_now = replace(mixture, chat_share=plan.decay_chat_share) if is_decaying(step, plan) else mixture
        tokens = seen_now.batch(step, plan.tokens_per_step, length).to(device)
        for optim, full in zip(optims, (plan.matrix_lr, plan.other_lr), strict=True):
            optim.param_groups[0]["lr"] = full * rate(step, plan)
        with mixed_precision(device):
            loss = train_loss(model, tokens, mixture.filler)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), plan.gradient_norm)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        seen += tokens.numel()
        value = float(loss.detach())
        on_step(value)
        record: dict[str, Any] = {"step": step + 1, "loss": round(value, 4), "lr": round(rate(step, plan), 4)}
        record["tokens_per_s"] = round(seen / (time.monotonic() - started))
        if (step + 1) % plan.evaluate_every == 0 or step + 1 == plan.steps:
            record |= {f"held_out_{name}": evaluate(model, rows, mixture.filler) for name, rows in held_out.items()}
        with (folder / "log.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            _save(model, optims, step + 1, folder)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, rows: Tensor, filler: int) -> float:
    """Held-out loss in nats per token; rows is [B, T] int64."""
    device = next(model.parameters()).device
    parts: tuple[Tensor, ...] = rows.split(8)  # type: ignore[no-untyped-call]
    with mixed_precision(device):
        losses = [float(language_loss(model, part.to(device), filler)) for part in parts]
    return round(sum(losses) / len(losses), 4)


def steps_done(folder: Path) -> int:
    """Steps of the last checkpoint in the folder; 0 without one."""
    path = folder / "state.pt"
    return int(torch.load(path, map_location="cpu", weights_only=True)["step"]) if path.exists() else 0


def _save(model: nn.Module, optims: list[torch.optim.Optimizer], step: int, folder: Path) -> None:
    state = {"step": step, "model": model.state_dict(), "optimizers": [optim.state_dict() for optim in optims]}
    partial = folder / "state.pt.partial"
    torch.save(state, partial)
    os.replace(partial, folder / "state.pt")


def _resume(model: nn.Module, optims: list[torch.optim.Optimizer], folder: Path, device: torch.device) -> int:
    path = folder / "state.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for optim, saved in zip(optims, state["optimizers"], strict=True):
        optim.load_state_dict(saved)
    log.info("resuming after step %d", state["step"])
    return int(state["step"])
