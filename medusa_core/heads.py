"""Draft heads: guesses about the tokens after the next one, from one hidden state.

Knows nothing of trees, caches or text. Head k (1..K) reads the base model's last hidden state (after the final
norm) at position t and predicts token t + k + 1; the base LM head itself predicts t + 1.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medusa_core.config import HeadsConfig
from medusa_core.errors import HeadsMismatch
from medusa_core.reasons import in_one_line

__all__ = ["DraftHeads", "TorchInt8"]

_log = logging.getLogger(__name__)

# A product with one weight [out, in]: rows [R, in] and what is added to each, [out], give [R, out].
Multiply = Callable[[Tensor, Tensor], Tensor]
# From a weight [V, H] int8 and scales [V] to a product that maps rows [R, H] to [R, V], or None.
MultiplyByInt8 = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor] | None]


class DraftHeads(nn.Module):
    """K heads, each L residual blocks `x + SiLU(Wx + b)` and an LM head without bias.

    The blocks of all heads are stored stacked, so that one batched product serves them all, and they are independent
    of each other (the reference implementation ties the blocks of one head by accident). W and b start at zero:
    an untrained head says exactly what the LM head says. Source: Medusa (arXiv:2401.10774), section "Medusa Heads".

    weight:    [L, K, H, H] and bias: [L, K, H], the residual blocks.
    lm_head:   [K, V, H], or [1, V, H] for one that all heads share; None when they use the base model's.
    down, up:  [K, r, H] and [K, V, r], what each head adds to the shared LM head: up (down x); None without.
    token_ids: [V] int64, the token behind each row of the LM heads; None when row i is token i.
    """

    def __init__(self, config: HeadsConfig, lm_head: Tensor | None = None, token_ids: Tensor | None = None) -> None:
        """Make untrained heads.

        lm_head:   [V, H], the base model's rows for the tokens that are drafted, borrowed or copied as `config` says.
        token_ids: [V] int64, which tokens these are where they are not the first V.
        """
        super().__init__()
        if lm_head is not None and lm_head.shape != (config.vocab_size, config.hidden_size):
            raise HeadsMismatch(
                f"heads for hidden size {config.hidden_size} and vocabulary {config.vocab_size} "
                f"do not fit a base LM head of shape {list(lm_head.shape)}"
            )
        if token_ids is not None and token_ids.shape != (config.vocab_size,):
            raise HeadsMismatch(
                f"heads that draft from {config.vocab_size} tokens need as many ids, got {list(token_ids.shape)}"
            )
        self.config = config
        layers, heads, hidden, rank = config.num_layers, config.num_heads, config.hidden_size, config.lm_head_rank
        like = lm_head.detach() if lm_head is not None else torch.empty(0)
        self.weight = nn.Parameter(like.new_zeros(layers, heads, hidden, hidden))
        self.bias = nn.Parameter(like.new_zeros(layers, heads, hidden))
        self.token_ids: Tensor | None
        self.register_buffer("token_ids", token_ids.to(like.device) if token_ids is not None else None)
        # In a tuple the borrowed weight is neither a parameter of the heads nor moved or saved with them.
        self._borrowed = (lm_head.detach(),) if lm_head is not None and config.shared_lm_head else ()
        self._int8: _Int8LmHeads | None = None
        self._blocks: Multiply | None = None
        self.lm_head: nn.Parameter | None = None
        if not config.shared_lm_head:
            start = lm_head.detach() if lm_head is not None else torch.zeros(config.vocab_size, hidden)
            self.lm_head = nn.Parameter(start.expand(1 if config.one_lm_head else heads, -1, -1).clone())
        self.down: nn.Parameter | None = None
        self.up: nn.Parameter | None = None
        if rank is not None:
            # One factor at zero keeps the start exact; were both, neither would ever get a gradient.
            small = torch.randn(heads, rank, hidden) / hidden**0.5
            self.down = nn.Parameter(small.to(like))
            self.up = nn.Parameter(like.new_zeros(heads, config.vocab_size, rank))

    @classmethod
    def from_base(
        cls,
        lm_head: Tensor,
        num_heads: int,
        num_layers: int = 1,
        shared_lm_head: bool = True,
        lm_head_rank: int | None = None,
        token_ids: Tensor | None = None,
    ) -> Self:
        """Untrained heads for a base model whose LM head is `lm_head` [V, H].

        lm_head_rank: see HeadsConfig; needs the shared LM head.
        token_ids:    [V'] int64, the only tokens that are drafted; None drafts from all.
        """
        rows = lm_head[token_ids.to(lm_head.device)] if token_ids is not None else lm_head
        vocab_size, hidden_size = rows.shape
        config = HeadsConfig(num_heads, num_layers, hidden_size, vocab_size, shared_lm_head, lm_head_rank)
        return cls(config, rows, token_ids)

    @property
    def has_base(self) -> bool:
        """Whether there is an LM head to draft with: heads that share the base's may have been made without it."""
        return self.lm_head is not None or bool(self._borrowed)

    def as_tokens(self, rows: Tensor) -> Tensor:
        """The tokens behind rows [...] int64 of the LM heads, [...] int64."""
        return self.token_ids[rows] if self.token_ids is not None else rows

    def of_tokens(self, values: Tensor) -> Tensor:
        """From one value for each token of the model, [..., W], those of the tokens that are drafted, [..., V]."""
        return values[..., self.token_ids] if self.token_ids is not None else values[..., : self.config.vocab_size]

    @torch.no_grad()
    def drafting_only(self, tokens: Tensor) -> "DraftHeads":
        """The same heads with those rows of their LM heads alone that draft `tokens` [V'] int64.

        Reading LM heads is most of what heads cost; a token that is left out is never proposed, but still emitted.
        Tokens that these heads do not know are left out, too; raises HeadsMismatch where that leaves none.
        """
        known = self.as_tokens(torch.arange(self.config.vocab_size, device=tokens.device))
        rows = torch.isin(known, tokens).nonzero()[:, 0]
        if len(rows) == 0:
            raise HeadsMismatch(
                f"the heads know none of the {len(tokens)} tokens that they shall draft; draft from a larger vocabulary"
            )
        tokens = known[rows]
        config = replace(self.config, vocab_size=len(rows))
        base = self._borrowed[0][rows] if self._borrowed else None
        cut = DraftHeads(
            config, base if base is not None else self.weight.new_zeros(len(rows), config.hidden_size), tokens
        )
        cut.weight.copy_(self.weight)
        cut.bias.copy_(self.bias)
        for own, whole in ((cut.lm_head, self.lm_head), (cut.up, self.up)):
            if own is not None and whole is not None:
                own.copy_(whole[:, rows])
        if cut.down is not None and self.down is not None:
            cut.down.copy_(self.down)
        return cut.to(self.weight.device).requires_grad_(False)

    def lm_head_of(self, head: int) -> Tensor:
        """The whole LM head [V, H] of one head, counted from 0, whichever way it is kept."""
        if self.lm_head is not None:
            return self.lm_head[head if not self.config.one_lm_head else 0]
        if self.up is None or self.down is None:
            return self._base_lm_head()
        whole = self._base_lm_head().float() + self.up[head].float() @ self.down[head].float()
        return whole.to(self.weight)

    def residual(self, hidden: Tensor) -> Tensor:
        """The heads' hidden states, before any LM head.

        hidden: [..., H].

        Returns [K, ..., H].
        """
        flat = hidden.reshape(-1, hidden.shape[-1])
        rows, first = flat.expand(self.config.num_heads, -1, -1), 0  # [K, R, H]
        if self._blocks is not None:
            grown = F.silu(self._blocks(flat, self.bias[0].flatten())).reshape(len(flat), *self.bias[0].shape)
            rows, first = rows + grown.transpose(0, 1), 1
        for weight, bias in zip(self.weight[first:], self.bias[first:], strict=True):
            rows = rows + F.silu(torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2)))
        return rows.reshape(self.config.num_heads, *hidden.shape)

    def join_blocks(self, multiply_by: Callable[[Tensor], Multiply]) -> None:
        """Compute the first blocks of all heads, which see the same rows, as one product with a weight [K * H, H].

        multiply_by: makes the product with a weight: rows [R, H] and what is added to them in, [R, K * H] out.
        """
        self._blocks = multiply_by(self.weight[0].detach().flatten(0, 1))

    def quantize_lm_heads(self, multiply_by: MultiplyByInt8 | None = None) -> bool:
        """Draft with int8 copies of the LM heads from here on; False, and no change, where torch has no such kernel.

        Reading the LM heads dominates drafting. Heads propose and cannot change the output, so what rounding does to
        them costs acceptance at most.

        multiply_by: makes the product with a weight [V, H] int8 and scales [V]; without one, or where it makes none,
                     torch's is taken.
        """
        weights = self.lm_head if self.lm_head is not None else self._base_lm_head()[None]
        if not hasattr(torch, "_weight_int8pack_mm"):
            return False
        found, row = (
            _Int8LmHeads(weights.detach(), multiply_by),
            weights.new_zeros(self.config.num_heads, 1, weights.shape[2]),
        )
        try:
            found(row)
        except (NotImplementedError, RuntimeError) as reason:
            _log.info("LM heads stay as they are, int8 ones are not computed here: %s", in_one_line(reason))
            return False
        self._int8 = found
        return True

    @torch.inference_mode()
    def choose_lm_head_kernel(
        self,
        multiply_by: MultiplyByInt8 | None = None,
        seconds: Callable[["DraftHeads", Tensor], float] | None = None,
    ) -> None:
        """Keep int8 copies of the LM heads only where they draft faster on this processor, measured on one row.

        multiply_by: see quantize_lm_heads; torch's product is tried as well, which knows several threads.
        seconds:     measures drafting from a row [H]; None is the clock.
        """
        measure = seconds if seconds is not None else _seconds
        row = self.weight.new_zeros(self.config.hidden_size)
        least, chosen = measure(self, row), None
        for way in dict.fromkeys((multiply_by, None)):
            if self.quantize_lm_heads(way) and (taken := measure(self, row)) <= least:
                least, chosen = taken, self._int8
        self._int8 = chosen

    def project(self, states: Tensor) -> Tensor:
        """Logits of every head from its hidden states; one matrix product where they share an LM head.

        states: [K, ..., H].

        Returns [K, ..., V].
        """
        rows = states.reshape(self.config.num_heads, -1, states.shape[-1])  # [K, R, H]
        logits = self._int8(rows) if self._int8 is not None else self._project_exactly(rows)
        if self.up is not None and self.down is not None:
            low = torch.bmm(rows, self.down.transpose(1, 2))  # [K, R, r]
            logits = logits + torch.bmm(self.up, low.transpose(1, 2)).transpose(1, 2)
        return logits.reshape(*states.shape[:-1], -1)

    def _project_exactly(self, rows: Tensor) -> Tensor:
        if self.lm_head is None:
            return F.linear(rows, self._base_lm_head())
        if self.config.one_lm_head:
            return F.linear(rows, self.lm_head[0])
        # This way round a single row is a matrix-vector product that reads each weight once, in order.
        return torch.bmm(self.lm_head, rows.transpose(1, 2)).transpose(1, 2)

    def _base_lm_head(self) -> Tensor:
        if not self._borrowed:
            raise HeadsMismatch("heads that share the base LM head were made without one")
        return self._borrowed[0]

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of every head.

        hidden: [..., H], the base model's last hidden state after the final norm.

        Returns [K, ..., V]; slice k - 1 guesses the token k + 1 places after the hidden state's own.
        """
        return self.project(self.residual(hidden))


def _seconds(heads: DraftHeads, row: Tensor) -> float:
    """Time of drafting from one row: the shortest of a few, the first of which also warm up."""
    taken = []
    for _ in range(7):
        started = time.perf_counter()
        heads(row)
        if row.device.type == "cuda":
            torch.cuda.synchronize(row.device)
        taken.append(time.perf_counter() - started)
    return min(taken)


class _Int8LmHeads:
    """LM heads with int8 weights and one scale per output row."""

    def __init__(self, weights: Tensor, multiply_by: MultiplyByInt8 | None) -> None:
        """Weights [G, V, H]: one for each head, or a single one for all."""
        self._products: list[Callable[[Tensor], Tensor]] = []
        dtype = torch.bfloat16 if weights.device.type == "cpu" else torch.float32
        for weight in weights:
            scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(weight.dtype).tiny) / 127  # [V]
            # in place and one by one: on large vocabularies a copy in the compute dtype is a gigabyte
            rounded = (weight / scale[:, None]).round_().to(torch.int8)
            made = multiply_by(rounded, scale) if multiply_by is not None else None
            self._products.append(made if made is not None else TorchInt8(rounded, scale.to(dtype)))

    def __call__(self, states: Tensor) -> Tensor:
        """Map states [K, R, H] to logits [K, R, V] float32."""
        groups = states.reshape(len(self._products), -1, states.shape[-1])
        logits = [product(group) for product, group in zip(self._products, groups, strict=True)]
        return torch.stack(logits).float().reshape(*states.shape[:-1], -1)


@dataclass(frozen=True)
class TorchInt8:
    """torch's product with int8 weights [V, H] and scales [V]: rows [R, H] to [R, V].

    The hidden states take the scales' dtype. On a CPU that is bfloat16: int8 ones overflow on processors without int8
    dot products, which add pairs of products in 16 bits. The kernel on CUDA computes in float32.
    """

    weight: Tensor
    scales: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows [R, H] to [R, V], in the scales' dtype."""
        return torch._weight_int8pack_mm(rows.to(self.scales.dtype), self.weight, self.scales)
