"""Pre-training of the demo model: Muon for the matrices, AdamW for the rest, a constant rate that decays at the end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medusa_core.demo.packing import Mixture, labels_for
from medusa_core.training.loop import LoopPlan, fit
from medusa_core.training.plan import fingerprint
from medusa_core.training.precision import mixed_precision
from medusa_core.training.workers import Alone

__all__ = [
    "ModelShape",
    "PretrainPlan",
    "PretrainRecipe",
    "build_model",
    "decay_steps",
    "evaluate",
    "is_decaying",
    "language_loss",
    "optimizers",
    "pretrain",
    "rate",
]

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


class PretrainRecipe:
    """Steps of the base model on its mixture; long rows now and then, more conversations while the rate falls."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        mixture: Mixture,
        held_out: dict[str, Tensor],
        plan: PretrainPlan,
        device: torch.device,
    ) -> None:
        """Held-out token ids [B, T] by name are measured now and then."""
        self._model, self._mixture, self._held_out, self._plan, self._device = model, mixture, held_out, plan, device
        self._optimizers = optimizers(model, plan)
        self._loss = torch.compile(language_loss) if plan.compile else language_loss

    def modules(self) -> Mapping[str, nn.Module]:
        """See Recipe.modules."""
        return {"model": self._model}

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """See Recipe.optimizers."""
        return self._optimizers

    def rate(self, step: int) -> float:
        """See Recipe.rate."""
        return rate(step, self._plan)

    def accumulate(self, step: int) -> Mapping[str, float | list[float]]:
        """See Recipe.accumulate."""
        plan, mixture = self._plan, self._mixture
        length = plan.long_length if step % plan.long_every == plan.long_every - 1 else plan.length
        seen = replace(mixture, chat_share=plan.decay_chat_share) if is_decaying(step, plan) else mixture
        tokens = seen.batch(step, plan.tokens_per_step, length).to(self._device)
        with mixed_precision(self._device):
            loss = self._loss(self._model, tokens, mixture.filler)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": float(loss.detach())}

    def evaluate(self) -> Mapping[str, float | list[float]]:
        """See Recipe.evaluate."""
        rows = self._held_out.items()
        return {f"held_out_{name}": evaluate(self._model, each, self._mixture.filler) for name, each in rows}


def pretrain(
    model: LlamaForCausalLM,
    mixture: Mixture,
    held_out: dict[str, Tensor],
    plan: PretrainPlan,
    folder: Path,
    device: torch.device,
) -> None:
    """Train in place, going on from the folder's last state when there is one.

    held_out: token ids [B, T] by name, measured now and then.
    """
    model.to(device)  # type: ignore[arg-type]
    recipe = PretrainRecipe(model, mixture, held_out, plan, device)
    loop = LoopPlan("pre-training", plan.steps, plan.gradient_norm, plan.save_every, plan.evaluate_every, None)
    # the number of steps may be another when a run goes on
    fit(recipe, loop, folder, fingerprint(str(replace(plan, steps=0))), Alone(device))


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, rows: Tensor, filler: int) -> float:
    """Held-out loss in nats per token; rows is [B, T] int64."""
    device = next(model.parameters()).device
    parts: tuple[Tensor, ...] = rows.split(8)  # type: ignore[no-untyped-call]
    with mixed_precision(device):
        losses = [float(language_loss(model, part.to(device), filler)) for part in parts]
    return round(sum(losses) / len(losses), 4)
