"""What a request does to the model's logits before a token is drawn: penalties, biases, early ends, a grammar.

Each node of a tree is adjusted with its own path as context, so that the draw at a position is the one plain decoding
would make there.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from medusa_core.sampling import SamplingParams
from medusa_core.tree import CandidateTree

__all__ = ["Adjustments"]


@dataclass(frozen=True)
class Adjustments:
    """The adjustments of one request, on the device; None for each that it does not ask for.

    params:         whose penalties are applied.
    prompt_seen:    [V] bool, tokens of the prompt, for the repetition penalty.
    bias:           [V] float32.
    ends:           [E] int64, tokens that would end the answer.
    first_allowed:  absolute position from which on they may be drawn.
    """

    params: SamplingParams
    prompt_seen: Tensor | None
    bias: Tensor | None
    ends: Tensor | None
    first_allowed: int
    vocab_size: int
    device: torch.device

    @classmethod
    def of_request(
        cls,
        params: SamplingParams,
        prompt: Sequence[int],
        ends: Collection[int],
        vocab_size: int,
        device: torch.device,
    ) -> Self:
        """What `params` ask for behind this prompt; `ends` are the tokens that end the answer."""
        prompt_seen = bias = None
        if params.repetition_penalty != 1.0:
            prompt_seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            prompt_seen[torch.tensor(prompt, dtype=torch.long, device=device)] = True
        if params.logit_bias:
            tokens, values = zip(*params.logit_bias, strict=True)
            bias = torch.zeros(vocab_size, device=device)
            bias[torch.tensor(tokens, device=device)] = torch.tensor(values, dtype=torch.float32, device=device)
        banned = torch.tensor(sorted(ends), dtype=torch.long, device=device) if params.min_tokens > 0 and ends else None
        return cls(params, prompt_seen, bias, banned, len(prompt) + params.min_tokens, vocab_size, device)

    def start(self) -> Tensor | None:
        """How often each token stands in the empty answer, [V] float32; None when no penalty asks for it."""
        has_penalty = self.params.presence_penalty != 0.0 or self.params.frequency_penalty != 0.0
        if not has_penalty and self.prompt_seen is None:
            return None
        return torch.zeros(self.vocab_size, device=self.device)

    def count(self, counts: Tensor | None, tokens: Tensor, emitted: Tensor) -> Tensor | None:
        """The counts after a step.

        counts:  [V] float32 before it.
        tokens:  [P] int64, of which the first `emitted` [] int64 were emitted.
        """
        if counts is None:
            return None
        is_emitted = torch.arange(tokens.shape[0], device=tokens.device) < emitted
        return counts.index_add(0, tokens, is_emitted.to(counts.dtype))

    def apply(
        self, logits: Tensor, tree: CandidateTree, past: Tensor, counts: Tensor | None, allowed: Tensor | None
    ) -> Tensor:
        """Adjust each node's logits to its own path.

        logits:  [N, V], the model's at every node.
        past:    [] int64, absolute position of the root; node n draws the token of position past + depth[n] + 1.
        counts:  [V] float32, of the answer up to the root, included; None when no penalty asks for it.
        allowed: [N, V] bool, what a grammar allows at each node; None without one.

        Returns [N, V]; unchanged, not even copied, when nothing was asked for.
        """
        if counts is not None:
            logits = self._penalise(logits.float(), _along_paths(tree, counts))
        if self.bias is not None:
            logits = logits.float() + self.bias
        if self.ends is not None:
            is_early = past + 1 + tree.depth < self.first_allowed  # [N]
            if allowed is not None:
                # a complete grammar allows an end and nothing else, and something must be drawn
                is_early = is_early & allowed.index_fill(1, self.ends, False).any(dim=1)
            columns = logits.index_select(1, self.ends)
            logits = logits.index_copy(1, self.ends, columns.masked_fill(is_early[:, None], -math.inf))
        return logits if allowed is None else logits.float().masked_fill(~allowed, -math.inf)

    def _penalise(self, logits: Tensor, counts: Tensor) -> Tensor:
        """Logits [N, V] less the penalties for counts [N, V]."""
        params, is_present = self.params, counts > 0
        if self.prompt_seen is not None:
            factor = params.repetition_penalty
            repeated = torch.where(logits > 0, logits / factor, logits * factor)
            logits = torch.where(is_present | self.prompt_seen, repeated, logits)
        return logits - params.presence_penalty * is_present - params.frequency_penalty * counts


def _along_paths(tree: CandidateTree, counts: Tensor) -> Tensor:
    """Counts [N, V] at each node: the answer's [V], which hold the root, and the drafted tokens on the node's path."""
    drafted = tree.ancestors.to(counts.dtype)
    drafted = torch.cat([torch.zeros_like(drafted[:, :1]), drafted[:, 1:]], dim=1)
    tokens = tree.tokens.expand(tree.num_nodes, -1)
    return counts.repeat(tree.num_nodes, 1).scatter_add_(1, tokens, drafted)
