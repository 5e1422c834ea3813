"""Coupled drafting: candidates ranked with the very noise by which the verifier will draw.

The noise of a draw depends on seed, position and token alone, so it is known while drafting. Of a token whose chance
is p it tells whether that is a lucky or an unlucky one. Source: Gumbel coupling (arXiv:2504.15475); here it gives the
chance of each guess, too.
"""

import torch
from torch import Tensor

from medusa_core.drafters.drafter import DraftState
from medusa_core.heads import DraftHeads
from medusa_core.memory import IMPOSSIBLE
from medusa_core.sampling import Sampler

__all__ = ["known_noise", "perturbed", "upcoming_noise"]

# Share of the noise that counts. All of it would be right for a drafter that knows the model's distribution; one that
# is often sure and wrong is misled by luck. Measured on the demo model at temperature 1.
_SHARE_FOR_HEADS = 0.6
_SHARE_FOR_PROPOSALS = 0.3


def upcoming_noise(state: DraftState, count: int) -> Tensor | None:
    """What will be added to the logits of the `count` positions behind the root, [count, V] float32; None adds nothing.

    Needs `state.memory` where there is a sampler.
    """
    if state.sampler is None:
        return None
    assert state.memory is not None, "it knows how many tokens there are"
    return state.sampler.noise(state.past + 1, count, state.memory.vocab_size)


def perturbed(logits: Tensor, heads: DraftHeads, sampler: Sampler, noise: Tensor) -> Tensor:
    """Head logits [K, V] as they compare once the noise [R, W] of all tokens is known: [K, V] float32."""
    temperature = sampler.filters.temperature
    assert temperature is not None, "a sampler without temperature adds no noise"
    return logits / temperature + _SHARE_FOR_HEADS * heads.of_tokens(noise[: logits.shape[0]])


def known_noise(log_chances: Tensor, noise: Tensor) -> Tensor:
    """Log-probability that tokens are drawn, once their own noise is known: [E] float32, <= 0.

    log_chances: [E] float32, before it is known.
    noise:       [E] float32, of each token at its position.

    With chance p and noise g a token is drawn when g + log p exceeds what all others reach, which is log(1 - p) plus
    standard Gumbel noise: with probability exp(-exp(-g) (1 - p) / p).
    """
    odds_against = torch.expm1(-log_chances)  # (1 - p) / p; infinite for what is impossible
    known = -(odds_against * torch.exp(-noise)).clamp(max=-IMPOSSIBLE)
    return log_chances + _SHARE_FOR_PROPOSALS * (known - log_chances)
