"""The main path: prefill, and the two halves of a step. Pure tensor functions without host synchronisation.

A step drafts a tree under the root, verifies it in one forward pass, accepts a path and commits its rows. Plain
decoding is the same step with a root-only tree, prefill is the same pass over a chain. Invariant between steps: the
cache holds exactly one row less than there are tokens, because the root is decided but not yet computed.

Between the two halves, while the forward pass runs, a grammar is asked on the host what each node allows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from medusa_core.acceptance import Acceptance, AcceptanceRule
from medusa_core.adjustments import Adjustments
from medusa_core.backbone import Backbone, Forward
from medusa_core.drafters import DraftState
from medusa_core.kv_cache import KVCache
from medusa_core.tree import CandidateTree

__all__ = [
    "Logprobs",
    "OrdinaryPrompts",
    "Prefilled",
    "Prompts",
    "Verified",
    "accept_and_commit",
    "bucket",
    "logprobs_of",
    "prefill",
    "verify",
]


@dataclass(frozen=True)
class Verified:
    """A drafted tree and what the model says at each of its N nodes."""

    tree: CandidateTree
    forward: Forward


@dataclass(frozen=True)
class Logprobs:
    """How likely the model itself finds tokens, in nats, before anything that a request adds to its logits.

    chosen: [T] float32, of the tokens in question.
    tokens: [T, k] int64, the k likeliest in each place, best first.
    values: [T, k] float32, of those.
    """

    chosen: Tensor
    tokens: Tensor
    values: Tensor


@dataclass(frozen=True)
class Prefilled:
    """A computed prompt.

    last:   the last token's hidden state [1, H] and logits [1, V].
    scores: one Logprobs per chunk, together those of all prompt tokens but the first; empty unless asked for.
    """

    last: Forward
    scores: tuple[Logprobs, ...]


def logprobs_of(logits: Tensor, tokens: Tensor, top: int) -> Logprobs:
    """Log-probabilities of tokens [T] int64 under logits [T, V], with the `top` likeliest of each row."""
    log_p = logits.float().log_softmax(dim=-1)
    likeliest = log_p.topk(top, dim=-1)
    return Logprobs(log_p.gather(1, tokens[:, None])[:, 0], likeliest.indices, likeliest.values)


class Prompts(Protocol):
    """How a piece of a prompt is computed; writes the cache's rows behind the committed ones."""

    def compute(self, piece: Sequence[int], start: int, is_scored: bool) -> Forward:
        """Tokens behind `start` committed rows.

        Returns the last token's hidden state [1, H] and logits [1, V], or those of all T tokens when `is_scored`.
        """
        ...


class OrdinaryPrompts:
    """Each piece is one ordinary pass of just its length."""

    def __init__(self, backbone: Backbone, cache: KVCache) -> None:
        self._backbone, self._cache = backbone, cache

    def compute(self, piece: Sequence[int], start: int, is_scored: bool) -> Forward:
        """See Prompts.compute; hidden [1, H] and logits [1, V], or of all T."""
        length, device = len(piece), self._backbone.device
        tree = CandidateTree.chain(torch.tensor(piece, device=device))
        visible_rows = min(self._cache.rows, bucket(start + length))
        keep = torch.arange(0 if is_scored else length - 1, length, device=device)
        found = self._backbone.forward(tree, torch.tensor(start, device=device), self._cache, visible_rows, keep)
        return found if is_scored else Forward(found.hidden[-1:], found.logits)


def prefill(
    prompts: Prompts,
    cache: KVCache,
    prompt: Sequence[int],
    chunk: int,
    should_stop: Callable[[], bool],
    top_logprobs: int | None,
) -> Prefilled | None:
    """Compute the prompt behind the rows the cache already holds of it, in chunks of bounded memory.

    Extends `cache.tokens` chunk by chunk, so that what was computed stays usable when the prefill is stopped.

    prompts:      computes the pieces, and writes them to this very cache.
    top_logprobs: score the prompt's own tokens, with so many alternatives; None does not. Only tokens behind a
                  computed one have a score, so the cache should hold none of the prompt.

    Returns None when `should_stop` said so between chunks.
    """
    result, scores = None, []
    while len(cache.tokens) < len(prompt):
        if should_stop():
            return None
        start = len(cache.tokens)
        piece = list(prompt[start : start + chunk])
        result = prompts.compute(piece, start, is_scored=top_logprobs is not None)
        cache.tokens.extend(piece)
        if top_logprobs is not None:
            following = torch.tensor(prompt[start + 1 : start + 1 + len(piece)], device=result.logits.device)
            scores.append(logprobs_of(result.logits[: len(following)], following.long(), top_logprobs))
    if result is None:
        return None
    return Prefilled(Forward(result.hidden[-1:], result.logits[-1:]), tuple(scores))


def verify(backbone: Backbone, cache: KVCache, tree: CandidateTree, past: Tensor, visible_rows: int) -> Verified:
    """Compute all nodes of a drafted tree in one pass; writes the cache's scratch rows only.

    past: [] int64, committed rows.
    """
    return Verified(tree, backbone.forward(tree, past, cache, visible_rows))


def accept_and_commit(
    cache: KVCache,
    adjustments: Adjustments,
    rule: AcceptanceRule,
    verified: Verified,
    allowed: Tensor | None,
    state: DraftState,
) -> tuple[Acceptance, DraftState]:
    """Accept a path, move its rows to the front, and return what was emitted with the state of the next step.

    Mutates the cache.

    allowed: [N, V] bool, what a grammar allows at each node; None without one.
    """
    logits = adjustments.apply(verified.forward.logits, verified.tree, state.past, state.counts, allowed)
    accepted = rule.accept(verified.tree, logits, state.past)
    cache.commit(state.past, accepted.path)
    hidden = verified.forward.hidden.index_select(0, accepted.last)[0]
    counts = adjustments.count(state.counts, accepted.tokens, accepted.count)
    history = state.history
    if history is not None:
        # what stands behind the new root is overwritten by the next step
        places = state.past + 1 + torch.arange(accepted.tokens.shape[0], device=history.device)
        history = history.index_copy(0, places, accepted.tokens)
    following = replace(
        state, root=accepted.bonus, hidden=hidden, past=state.past + accepted.count, counts=counts, history=history
    )
    return accepted, following


def bucket(rows: int, multiple: int = 64) -> int:
    """Visible rows in coarse buckets: few distinct shapes, and at most one bucket of rows read in vain."""
    return -(-rows // multiple) * multiple
