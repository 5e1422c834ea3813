"""What to train and how: the heads, and for Medusa-2 the base with them."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from medusa_core.errors import ConfigurationError

__all__ = ["JointPlan", "TrainPlan", "fingerprint", "rows_with_logits"]

# Logits of all heads in memory at a time: 1 GiB in float32, of which a loss with its gradient takes three.
MOST_LOGITS = 2**28

# What may be another when a run goes on: it decides what is kept and written, not what is learnt.
_INDIFFERENT = frozenset({"save_every", "save_after_s", "rows_per_chunk", "compile", "max_perplexity_percent", "merge"})


@dataclass(frozen=True)
class TrainPlan:
    """How heads are trained on a frozen base.

    num_heads:        K.
    num_layers:       residual blocks per head.
    shared_lm_head:   whether the heads use the base's LM head instead of a trained copy each.
    lm_head_rank:     rank of what each head adds to a shared LM head; None adds nothing.
    decay:            head k weighs decay ** k.
    epochs:           passes over the data.
    learning_rate:    of AdamW, after the warm-up; a cosine takes it to zero.
    max_length:       tokens of one row; examples are packed into rows, longer ones are cut.
    rows_per_pass:    rows that go through the model at once.
    passes_per_step:  passes whose gradients make one optimiser step, over all processes together.
    held_out_percent: share of the examples that only measure.
    rows_per_chunk:   positions with logits in memory at a time, at most; see `chunk_rows`.
    save_every:       steps between states on disk; one is also written when the last is `save_after_s` old.
    evaluate_every:   steps between measurements on the held-out share; None measures at the end.
    patience:         measurements without progress after which the run ends; None never ends it early.
    compile:          compile the loss; needs a C++ compiler, or Triton on a GPU.
    """

    num_heads: int = 4
    num_layers: int = 1
    shared_lm_head: bool = True
    lm_head_rank: int | None = None
    decay: float = 0.8
    epochs: int = 2
    learning_rate: float = 2e-3
    warmup_steps: int = 40
    max_length: int = 2048
    rows_per_pass: int = 2
    passes_per_step: int = 2
    gradient_norm: float = 1.0
    held_out_percent: float = 2.0
    rows_per_chunk: int = 2048
    save_every: int = 200
    save_after_s: float = 300.0
    evaluate_every: int | None = None
    patience: int | None = None
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse_below_one(self, "num_heads", "num_layers", "epochs", "rows_per_pass", "passes_per_step")
        _refuse_below_one(self, "rows_per_chunk", "save_every")
        _refuse_nothing(self, "decay", "learning_rate", "gradient_norm")
        if self.max_length < self.num_heads + 2:
            raise ConfigurationError(
                f"{self.num_heads} heads need rows of at least {self.num_heads + 2} tokens, max_length is "
                f"{self.max_length}; raise it, or train fewer heads"
            )
        if self.lm_head_rank is not None and not self.shared_lm_head:
            raise ConfigurationError("lm_head_rank adds to a shared LM head; heads with their own have no use for it")
        if self.patience is not None and self.evaluate_every is None:
            raise ConfigurationError("patience counts measurements; say how often to measure with evaluate_every")
        if not 0 <= self.seed < 2**32:
            raise ConfigurationError(f"seed is {self.seed}, it must be from 0 to {2**32 - 1}")
        if not 0.0 < self.held_out_percent < 100.0:
            raise ConfigurationError(f"held_out_percent is {self.held_out_percent}, it must be between 0 and 100")

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimiser step."""
        return self.rows_per_pass * self.passes_per_step

    def chunk_rows(self, vocab_size: int) -> int:
        """Positions with logits in memory at a time: fewer where many heads say much about each."""
        return min(self.rows_per_chunk, rows_with_logits(self.num_heads, vocab_size))

    def steps(self, rows: int, epochs: int) -> int:
        """Optimiser steps that so many passes over packed rows make."""
        return max(1, math.ceil(rows * epochs / self.rows_per_step))


@dataclass(frozen=True)
class JointPlan:
    """How base and heads are trained together; rows and steps are the heads' plan's.

    two_stages:     whether heads are first trained on the frozen base (the paper's first stage), or all at once.
    epochs:         passes over the data.
    learning_rate:  of AdamW for the base or its adapter, after the warm-up.
    heads_rate:     learning rate of the heads, as a multiple of the base's.
    heads_weight:   of the heads' loss against the base's own.
    heads_ramp:     whether that weight rises along a quarter of a sine instead of being constant.
    self_distilled: whether the base is held to what it said without the adapter instead of to the data.
    adapter_rank:   of LoRA; None trains all the base's weights.
    max_perplexity_percent: by how much held-out perplexity may worsen before nothing is written.
    merge:          write a whole model with the adapter merged in, instead of heads with an adapter beside them.
    """

    two_stages: bool = True
    epochs: int = 1
    learning_rate: float = 5e-4
    heads_rate: float = 4.0
    heads_weight: float = 0.2
    heads_ramp: bool = False
    self_distilled: bool = True
    adapter_rank: int | None = 32
    adapter_alpha: int = 16
    adapter_dropout: float = 0.05
    max_perplexity_percent: float = 1.0
    merge: bool = False

    def __post_init__(self) -> None:
        _refuse_below_one(self, "epochs", "adapter_alpha", *(["adapter_rank"] if self.adapter_rank is not None else []))
        _refuse_nothing(self, "learning_rate", "heads_rate", "heads_weight")
        if self.self_distilled and self.adapter_rank is None:
            raise ConfigurationError(
                "self-distillation compares with the model without its adapter; give an adapter rank, or hold the base "
                "to the data instead"
            )


def fingerprint(*facts: object) -> str:
    """What a run must share with the one it resumes: plans, and words about model and data."""
    plain = [_decisive(fact) if isinstance(fact, TrainPlan | JointPlan) else str(fact) for fact in facts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def rows_with_logits(num_heads: int, vocab_size: int) -> int:
    """Positions whose logits of all heads stay within the bound on what is in memory at a time."""
    return max(1, MOST_LOGITS // (num_heads * vocab_size))


def _decisive(plan: TrainPlan | JointPlan) -> dict[str, object]:
    """What of a plan decides where training leads."""
    return {name: value for name, value in asdict(plan).items() if name not in _INDIFFERENT}


def _refuse_below_one(plan: object, *names: str) -> None:
    for name in names:
        if getattr(plan, name) < 1:
            raise ConfigurationError(f"{name} is {getattr(plan, name)}, it must be at least 1")


def _refuse_nothing(plan: object, *names: str) -> None:
    for name in names:
        if not getattr(plan, name) > 0.0:
            raise ConfigurationError(f"{name} is {getattr(plan, name)}, it must be above 0")
