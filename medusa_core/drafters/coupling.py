"""Coupled drafting: candidates ranked with the very noise by which the verifier will draw.

The noise of a draw depends on seed, position and token alone, so it is known while drafting. Of a token whose chance
is p it tells whether that is a lucky or an unlucky one. Source: Gumbel coupling (arXiv:2504.15475); here it gives the
chance of each guess, too.
"""

import torch
from torch import Tensor

from medusa_core.heads import DraftHeads
from medusa_core.memory import IMPOSSIBLE
from medusa_core.sampling import Sampler, gumbel_noise_of

__all__ = ["known_noise", "perturbed"]

# Share of the noise that counts. All of it would be right for a drafter that knows the model's distribution; one that
# is often sure and wrong is misled by luck. Measured on the demo model at temperature 1.
_SHARE_FOR_HEADS = 0.6
_SHARE_FOR_PROPOSALS = 0.3


def perturbed(logits: Tensor, heads: DraftHeads, sampler: Sampler, past: Tensor) -> Tensor:
    """Head logits [K, V] as they compare once the noise is known, for head k at position past + k: [K, V] float32."""
    temperature = sampler.filters.temperature
    assert temperature is not None, "a sampler without temperature adds no noise"
    tokens = heads.as_tokens(torch.arange(heads.config.vocab_size, device=logits.device))
    positions = past + torch.arange(1, logits.shape[0] + 1, device=logits.device)
    noise = gumbel_noise_of(sampler.key, positions[:, None], tokens)
    return logits / temperature + _SHARE_FOR_HEADS * noise


def known_noise(log_chances: Tensor, sampler: Sampler, positions: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability that tokens are drawn, once their own noise is known: [E] float32, <= 0.

    log_chances: [E] float32, before it is known.
    positions:   [E] int64, absolute position of each; tokens [E] int64.

    With chance p and noise g a token is drawn when g + log p exceeds what all others reach, which is log(1 - p) plus
    standard Gumbel noise: with probability exp(-exp(-g) (1 - p) / p).
    """
    noise = gumbel_noise_of(sampler.key, positions, tokens)
    odds_against = torch.expm1(-log_chances)  # (1 - p) / p; infinite for what is impossible
    known = -(odds_against * torch.exp(-noise)).clamp(max=-IMPOSSIBLE)
    return log_chances + _SHARE_FOR_PROPOSALS * (known - log_chances)
