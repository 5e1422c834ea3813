"""Coupled drafting: the guesses of the heads ranked with the very noise by which the verifier will draw.

The noise of a draw depends on seed, position and token alone, so it is known while drafting. Source: Gumbel coupling
(arXiv:2504.15475); here it gives the chance of each guess, too. What others propose is ranked as without noise: with it
tokens per step of the demo model were the same.
"""

from torch import Tensor

from medusa_core.drafters.drafter import DraftState
from medusa_core.heads import DraftHeads
from medusa_core.sampling import Sampler

__all__ = ["perturbed", "upcoming_noise"]

# Share of the noise that counts. All of it would be right for heads that know the model's distribution; those that are
# often sure and wrong are misled by luck. Measured on the demo model at temperature 1.
_SHARE = 0.6


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
    return logits / temperature + _SHARE * heads.of_tokens(noise[: logits.shape[0]])
