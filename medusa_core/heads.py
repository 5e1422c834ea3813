"""Draft heads: guesses about the tokens after the next one, from one hidden state.

Knows nothing of trees, caches or text. Head k (1..K) reads the base model's last hidden state (after the final
norm) at position t and predicts token t + k + 1; the base LM head itself predicts t + 1.
"""

import time
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medusa_core.config import HeadsConfig
from medusa_core.errors import HeadsMismatch

__all__ = ["DraftHeads"]


class DraftHeads(nn.Module):
    """K heads, each L residual blocks `x + SiLU(Wx + b)` and an LM head without bias.

    The blocks of all heads are stored stacked, so that one batched product serves them all, and they are independent
    of each other (the reference implementation ties the blocks of one head by accident). W and b start at zero:
    an untrained head says exactly what the LM head says. Source: Medusa (arXiv:2401.10774), section "Medusa Heads".

    weight:  [L, K, H, H] and bias: [L, K, H], the residual blocks.
    lm_head: [K, V, H], present only when each head owns one.
    """

    def __init__(self, config: HeadsConfig, lm_head: Tensor | None = None) -> None:
        """Make untrained heads; `lm_head` [V, H] is the base model's, borrowed or copied as `config` says."""
        super().__init__()
        if lm_head is not None and lm_head.shape != (config.vocab_size, config.hidden_size):
            raise HeadsMismatch(
                f"heads for hidden size {config.hidden_size} and vocabulary {config.vocab_size} "
                f"do not fit a base LM head of shape {list(lm_head.shape)}"
            )
        self.config = config
        layers, heads, hidden = config.num_layers, config.num_heads, config.hidden_size
        like = lm_head.detach() if lm_head is not None else torch.empty(0)
        self.weight = nn.Parameter(like.new_zeros(layers, heads, hidden, hidden))
        self.bias = nn.Parameter(like.new_zeros(layers, heads, hidden))
        # In a tuple the borrowed weight is neither a parameter of the heads nor moved or saved with them.
        self._borrowed = (lm_head.detach(),) if lm_head is not None and config.shared_lm_head else ()
        self._int8: _Int8LmHeads | None = None
        self.lm_head: nn.Parameter | None = None
        if not config.shared_lm_head:
            start = lm_head.detach() if lm_head is not None else torch.zeros(config.vocab_size, hidden)
            self.lm_head = nn.Parameter(start.expand(heads, -1, -1).clone())

    @classmethod
    def from_base(cls, lm_head: Tensor, num_heads: int, num_layers: int = 1, shared_lm_head: bool = True) -> Self:
        """Untrained heads for a base model whose LM head is `lm_head` [V, H]."""
        vocab_size, hidden_size = lm_head.shape
        return cls(HeadsConfig(num_heads, num_layers, hidden_size, vocab_size, shared_lm_head), lm_head)

    def residual(self, hidden: Tensor) -> Tensor:
        """The heads' hidden states, before any LM head.

        hidden: [..., H].

        Returns [K, ..., H].
        """
        rows = hidden.reshape(1, -1, hidden.shape[-1]).expand(self.config.num_heads, -1, -1)  # [K, R, H]
        for weight, bias in zip(self.weight, self.bias, strict=True):
            rows = rows + F.silu(torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2)))
        return rows.reshape(self.config.num_heads, *hidden.shape)

    def quantize_lm_heads(self) -> bool:
        """Draft with int8 copies of the LM heads from here on; False, and no change, where torch has no such kernel.

        Only for a CPU, where reading the LM heads dominates drafting. Heads propose and cannot change the output, so
        what rounding does to them costs acceptance at most.
        """
        weights = self.lm_head if self.lm_head is not None else self._base_lm_head()[None]
        if weights.device.type != "cpu" or not hasattr(torch, "_weight_int8pack_mm"):
            return False
        self._int8 = _Int8LmHeads(weights.detach())
        return True

    @torch.inference_mode()
    def choose_lm_head_kernel(self) -> None:
        """Keep int8 copies of the LM heads only where they draft faster on this processor, measured on one row."""
        row = self.weight.new_zeros(self.config.hidden_size)
        as_loaded = _seconds(self, row)
        if self.quantize_lm_heads() and _seconds(self, row) > as_loaded:
            self._int8 = None

    def project(self, states: Tensor) -> Tensor:
        """Logits of every head from its hidden states; one matrix product when the LM head is shared.

        states: [K, ..., H].

        Returns [K, ..., V].
        """
        rows = states.reshape(self.config.num_heads, -1, states.shape[-1])  # [K, R, H]
        if self._int8 is not None:
            return self._int8(rows).reshape(*states.shape[:-1], -1)
        if self.lm_head is None:
            return F.linear(states, self._base_lm_head())
        # This way round a single row is a matrix-vector product that reads each weight once, in order.
        logits = torch.bmm(self.lm_head, rows.transpose(1, 2)).transpose(1, 2)
        return logits.reshape(*states.shape[:-1], -1)

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
        taken.append(time.perf_counter() - started)
    return min(taken)


class _Int8LmHeads:
    """LM heads with int8 weights and one scale per output row.

    The hidden states stay bfloat16: int8 ones overflow on processors without int8 dot products, which add pairs of
    products in 16 bits.
    """

    def __init__(self, weights: Tensor) -> None:
        """Weights [G, V, H]: one for each head, or a single one for all."""
        scales = weights.abs().amax(dim=2).clamp(min=torch.finfo(weights.dtype).tiny) / 127  # [G, V]
        self._weights = (weights / scales[..., None]).round().to(torch.int8)
        self._scales = scales.bfloat16()

    def __call__(self, states: Tensor) -> Tensor:
        """Map states [K, R, H] to logits [K, R, V] float32."""
        groups = states.bfloat16().reshape(len(self._weights), -1, states.shape[-1])
        products = [
            torch._weight_int8pack_mm(group, weight, scale)
            for group, weight, scale in zip(groups, self._weights, self._scales, strict=True)
        ]
        return torch.stack(products).float().reshape(*states.shape[:-1], -1)
