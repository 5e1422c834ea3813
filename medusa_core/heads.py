"""Draft heads: guesses about the tokens after the next one, from one hidden state.

Knows nothing of trees, caches or text. Head k (1..K) reads the base model's last hidden state (after the final
norm) at position t and predicts token t + k + 1; the base LM head itself predicts t + 1.
"""

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
        the activations may be quantised per tensor, which a verifier's may not.
        """
        weights = self.lm_head if self.lm_head is not None else self._base_lm_head()[None]
        if weights.device.type != "cpu" or not hasattr(torch.ops.onednn, "qlinear_prepack"):
            return False
        self._int8 = _Int8LmHeads(weights.detach().float())
        return True

    def project(self, states: Tensor) -> Tensor:
        """Logits of every head from its hidden states; one matrix product when the LM head is shared.

        states: [K, ..., H].

        Returns [K, ..., V].
        """
        rows = states.reshape(self.config.num_heads, -1, states.shape[-1])  # [K, R, H]
        if self._int8 is not None:
            return self._int8(rows.float()).reshape(*states.shape[:-1], -1)
        if self.lm_head is None:
            return F.linear(states, self._base_lm_head())
        return torch.bmm(rows, self.lm_head.transpose(1, 2)).reshape(*states.shape[:-1], -1)

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


class _Int8LmHeads:
    """LM heads with int8 weights, one scale per output row, for hidden states quantised on the fly with one scale."""

    def __init__(self, weights: Tensor) -> None:
        """Weights [G, V, H] float32: one for each head, or a single one for all."""
        self._scales = weights.abs().amax(dim=2).clamp(min=torch.finfo(weights.dtype).tiny) / 127  # [G, V]
        quantized = (weights / self._scales[..., None]).round().to(torch.int8)
        self._packed = [torch.ops.onednn.qlinear_prepack(weight, None) for weight in quantized]
        self._zeros = torch.zeros(weights.shape[1], dtype=torch.int32)
        self._zero = torch.zeros((), dtype=torch.int32)

    def __call__(self, states: Tensor) -> Tensor:
        """Map states [K, R, H] float32 to logits [K, R, V]."""
        scale = states.abs().amax().clamp(min=torch.finfo(states.dtype).tiny) / 127
        rows = (states / scale).round().to(torch.int8).reshape(len(self._packed), -1, states.shape[-1])
        # With a single row oneDNN falls to a reference kernel that is hundreds of times slower.
        padded = rows if rows.shape[1] > 1 else rows.expand(-1, 2, -1)
        products = [
            torch.ops.onednn.qlinear_pointwise.tensor(
                *(group, scale, self._zero, packed, scales, self._zeros, None),
                *(1.0, 0, torch.float32, "none", [], ""),
            )
            for group, packed, scales in zip(padded, self._packed, self._scales, strict=True)
        ]
        logits = torch.stack(products)[:, : rows.shape[1]]
        return logits.reshape(*states.shape[:-1], -1)
