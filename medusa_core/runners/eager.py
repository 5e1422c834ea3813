"""Steps as ordinary calls, one host read each: works on every device."""

from collections.abc import Iterator

import torch

from medusa_core.backbone import Backbone
from medusa_core.decoding import accept_and_commit, bucket, draft_and_forward, logprobs_of
from medusa_core.drafters import DraftState
from medusa_core.kv_cache import KVCache
from medusa_core.runners.runner import DecodePlan, StepResult, to_host

__all__ = ["EagerRunner"]


class EagerRunner:
    """Issues each step when the previous one's result is known."""

    def __init__(self, backbone: Backbone, cache: KVCache) -> None:
        self._backbone, self._cache = backbone, cache

    @torch.inference_mode()
    def steps(self, plan: DecodePlan, state: DraftState, past: int) -> Iterator[StepResult]:
        """See Runner.steps."""
        while True:
            # the commit writes one block of max_depth + 1 rows behind the accepted ones
            needed = past + max(plan.drafter.num_nodes, plan.drafter.max_depth + 1)
            visible_rows = min(self._cache.rows, bucket(needed))
            verified = draft_and_forward(self._backbone, self._cache, plan.drafter, state, visible_rows)
            accepted, state = accept_and_commit(self._cache, plan.adjustments, plan.rule, verified, state)
            used = verified.tree.used.sum()
            count, drafted, *tokens = torch.cat([accepted.count[None], used[None] - 1, accepted.tokens]).tolist()
            past += count
            logprobs = None
            if plan.top_logprobs is not None:
                path, emitted = accepted.path[:count], accepted.tokens[:count]
                logprobs = to_host(logprobs_of(verified.forward.logits[path], emitted, plan.top_logprobs))
            yield StepResult(tokens[:count], drafted, logprobs)
