"""Steps as ordinary calls, one host read each: works on every device."""

from collections.abc import Iterator

import torch

from medusa_core.backbone import Backbone
from medusa_core.decoding import accept_and_commit, bucket, draft_and_forward, logprobs_of
from medusa_core.drafters import DraftState
from medusa_core.kv_cache import KVCache
from medusa_core.runners.runner import DecodePlan, StepResult, step_result

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
            logprobs = None
            if plan.top_logprobs is not None:
                logits = verified.forward.logits.index_select(0, accepted.path)
                logprobs = logprobs_of(logits, accepted.tokens, plan.top_logprobs)
            result = step_result(accepted, verified.tree, logprobs)
            past += len(result.tokens)
            yield result
