"""The main path: prefill, and the two halves of a step. Pure tensor functions without host synchronisation.

A step drafts a tree under the root, verifies it in one forward pass, accepts a path and commits its rows. Plain
decoding is the same step with a root-only tree, prefill is the same pass over a chain. Invariant between steps: the
cache holds exactly one row less than there are tokens, because the root is decided but not yet computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from medusa_core.acceptance import Acceptance, AcceptanceRule
from medusa_core.adjustments import Adjustments
from medusa_core.backbone import Backbone, Forward
from medusa_core.drafters import Drafter, DraftState
from medusa_core.kv_cache import KVCache
from medusa_core.tree import CandidateTree

__all__ = ["Verified", "accept_and_commit", "bucket", "draft_and_forward", "prefill"]


@dataclass(frozen=True)
class Verified:
    """A drafted tree and what the model says at each of its N nodes."""

    tree: CandidateTree
    forward: Forward


def prefill(
    backbone: Backbone, cache: KVCache, prompt: Sequence[int], chunk: int, should_stop: Callable[[], bool]
) -> Forward | None:
    """Compute the prompt behind the rows the cache already holds of it, in chunks of bounded memory.

    Extends `cache.tokens` chunk by chunk, so that what was computed stays usable when the prefill is stopped.

    Returns the last token's hidden state [1, H] and logits [1, V]; None when `should_stop` said so between chunks.
    """
    result = None
    while len(cache.tokens) < len(prompt):
        if should_stop():
            return None
        start = len(cache.tokens)
        piece = list(prompt[start : start + chunk])
        tree = CandidateTree.chain(torch.tensor(piece, device=backbone.device))
        past = torch.tensor(start, device=backbone.device)
        visible_rows = min(cache.rows, bucket(start + len(piece)))
        result = backbone.forward(tree, past, cache, visible_rows, last_only=True)
        cache.tokens.extend(piece)
    if result is None:
        return None
    return Forward(result.hidden[-1:], result.logits)


def draft_and_forward(
    backbone: Backbone, cache: KVCache, drafter: Drafter, state: DraftState, visible_rows: int
) -> Verified:
    """Draft a tree and compute all its nodes in one pass; writes the cache's scratch rows only."""
    tree = drafter.draft(state)
    return Verified(tree, backbone.forward(tree, state.past, cache, visible_rows))


def accept_and_commit(
    cache: KVCache, adjustments: Adjustments, rule: AcceptanceRule, verified: Verified, state: DraftState
) -> tuple[Acceptance, DraftState]:
    """Accept a path, move its rows to the front, and return what was emitted with the state of the next step."""
    logits = adjustments.apply(verified.forward.logits, verified.tree, state.past, state.counts)
    accepted = rule.accept(verified.tree, logits, state.past)
    cache.commit(state.past, accepted.path)
    hidden = verified.forward.hidden.index_select(0, accepted.last)[0]
    counts = adjustments.count(state.counts, accepted.tokens, accepted.count)
    return accepted, DraftState(accepted.bonus, hidden, state.past + accepted.count, counts)


def bucket(rows: int, multiple: int = 64) -> int:
    """Visible rows in coarse buckets: few distinct shapes, and at most one bucket of rows read in vain."""
    return -(-rows // multiple) * multiple
