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

__all__ = ["Adjustments", "EarlyEnd", "Penalties", "Repetition"]


@dataclass(frozen=True)
class Penalties:
    """What is subtracted for tokens of the answer.

    presence:  [] float32, once.
    frequency: [] float32, for each time.
    unused:    [V] float32 zeros, the counts of an empty answer.
    """

    presence: Tensor
    frequency: Tensor
    unused: Tensor


@dataclass(frozen=True)
class Repetition:
    """What divides positive and multiplies negative logits of tokens in the prompt or the answer.

    factor:      [] float32.
    prompt_seen: [V] bool, tokens of the prompt.
    """

    factor: Tensor
    prompt_seen: Tensor


@dataclass(frozen=True)
class EarlyEnd:
    """Tokens that may not be drawn before the answer is long enough.

    is_end:        [V] bool.
    first_allowed: [] int64, absolute position from which on they may be drawn.
    """

    is_end: Tensor
    first_allowed: Tensor


@dataclass(frozen=True)
class Adjustments:
    """The adjustments of one request as data on the device; None for each that it does not ask for.

    Which of them exist decides which operations run, their values do not: so a captured step serves every request
    that asks for the same ones.

    penalties:      presence and frequency penalty; also there, as zeros, beside a repetition penalty.
    repetition:     the penalty and whom it meets.
    bias:           [V] float32.
    early_end:      which tokens would end the answer, and from where on they may.
    """

    penalties: Penalties | None
    repetition: Repetition | None
    bias: Tensor | None
    early_end: EarlyEnd | None

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
        penalties = repetition = bias = early_end = None
        if params.repetition_penalty != 1.0:
            factor = torch.tensor(params.repetition_penalty, dtype=torch.float32, device=device)
            repetition = Repetition(factor, _marked(prompt, vocab_size, device))
        if repetition is not None or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
            presence, frequency = torch.tensor(
                [params.presence_penalty, params.frequency_penalty], dtype=torch.float32, device=device
            )
            penalties = Penalties(presence, frequency, torch.zeros(vocab_size, device=device))
        if params.logit_bias:
            tokens, values = zip(*params.logit_bias, strict=True)
            bias = torch.zeros(vocab_size, device=device)
            bias[torch.tensor(tokens, device=device)] = torch.tensor(values, dtype=torch.float32, device=device)
        if params.min_tokens > 0 and ends:
            first_allowed = torch.tensor(len(prompt) + params.min_tokens, device=device)
            early_end = EarlyEnd(_marked(ends, vocab_size, device), first_allowed)
        return cls(penalties, repetition, bias, early_end)

    def start(self) -> Tensor | None:
        """How often each token stands in the empty answer, [V] float32; None when no penalty asks for it."""
        return self.penalties.unused if self.penalties is not None else None

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
        if self.penalties is not None and counts is not None:
            logits = self._penalise(logits.float(), _along_paths(tree, counts), self.penalties)
        if self.bias is not None:
            logits = logits.float() + self.bias
        if self.early_end is not None:
            is_end = self.early_end.is_end
            is_early = past + 1 + tree.depth < self.early_end.first_allowed  # [N]
            if allowed is not None:
                # a complete grammar allows an end and nothing else, and something must be drawn
                is_early = is_early & (allowed & ~is_end).any(dim=1)
            logits = logits.masked_fill(is_early[:, None] & is_end, -math.inf)
        return logits if allowed is None else logits.float().masked_fill(~allowed, -math.inf)

    def _penalise(self, logits: Tensor, counts: Tensor, penalties: Penalties) -> Tensor:
        """Logits [N, V] less the penalties for counts [N, V]."""
        is_present = counts > 0
        if self.repetition is not None:
            factor = self.repetition.factor
            repeated = torch.where(logits > 0, logits / factor, logits * factor)
            logits = torch.where(is_present | self.repetition.prompt_seen, repeated, logits)
        return logits - penalties.presence * is_present - penalties.frequency * counts


def _marked(tokens: Collection[int], vocab_size: int, device: torch.device) -> Tensor:
    """Which tokens are among these, [V] bool."""
    marked = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    marked[torch.tensor(sorted(set(tokens)), dtype=torch.long, device=device)] = True
    return marked


def _along_paths(tree: CandidateTree, counts: Tensor) -> Tensor:
    """Counts [N, V] at each node: the answer's [V], which hold the root, and the drafted tokens on the node's path."""
    drafted = tree.ancestors.to(counts.dtype)
    drafted = torch.cat([torch.zeros_like(drafted[:, :1]), drafted[:, 1:]], dim=1)
    tokens = tree.tokens.expand(tree.num_nodes, -1)
    return counts.repeat(tree.num_nodes, 1).scatter_add_(1, tokens, drafted)
