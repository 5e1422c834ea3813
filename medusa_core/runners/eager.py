"""Steps as ordinary calls, one host read each: works on every device."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from medusa_core.backbone import Backbone
from medusa_core.decoding import OrdinaryPrompts, Prompts, accept_and_commit, bucket, logprobs_of, verify
from medusa_core.drafters import DraftState
from medusa_core.kv_cache import KVCache
from medusa_core.runners.grammar import check_tree, host_tree, what_follows
from medusa_core.runners.row import pack
from medusa_core.runners.runner import DecodePlan, StepResult

__all__ = ["EagerRunner"]


class EagerRunner:
    """Issues each step when the previous one's result is known."""

    settling_steps = 0

    def __init__(self, backbone: Backbone, cache: KVCache) -> None:
        self._backbone, self._cache = backbone, cache

    def prompts(self, lengths: Sequence[int]) -> Prompts:
        """See Runner.prompts; nothing is recorded here."""
        return OrdinaryPrompts(self._backbone, self._cache)

    @torch.inference_mode()
    def steps(self, plan: DecodePlan, state: DraftState, past: int) -> Iterator[StepResult]:
        """See Runner.steps."""
        constraint, device, vocab_size = plan.constraint, self._backbone.device, self._backbone.vocab_size
        while True:
            phases = _Phases(device)
            forced = constraint.forced() if constraint is not None else []
            drafter = plan.drafting.next(past, len(forced))
            if constraint is not None:
                grammar = what_follows(constraint, forced, drafter.max_depth, vocab_size, device)
                state = replace(state, grammar=grammar)
                phases.end("grammar")
            tree = drafter.draft(state)
            phases.end("draft")
            # read before the forward pass is issued, so that a device need not finish that first
            drafted = host_tree(tree) if constraint is not None else None
            # the commit writes one block of max_depth + 1 rows behind the accepted ones
            needed = past + max(drafter.num_nodes, drafter.max_depth + 1)
            visible_rows = min(self._cache.rows, bucket(needed))
            verified, allowed = verify(self._backbone, self._cache, tree, state.past, visible_rows), None
            phases.end("verify")
            if constraint is not None and drafted is not None:
                tree, allowed = check_tree(constraint, tree, drafted, vocab_size)
                verified = replace(verified, tree=tree)
                phases.end("grammar")
            accepted, following = accept_and_commit(self._cache, plan.adjustments, plan.rule, verified, allowed, state)
            drafter.learn(state, tree, accepted.path, verified.forward.logits)
            state = following
            phases.end("accept")
            logprobs = None
            if plan.top_logprobs is not None:
                logits = verified.forward.logits.index_select(0, accepted.path)
                logprobs = logprobs_of(logits, accepted.tokens, plan.top_logprobs)
            row = pack(accepted, tree, logprobs)
            result = row.layout.read(row.values.tolist())
            phases.end("emit")
            if constraint is not None:
                constraint.advance(result.tokens)
                phases.end("grammar")
            past += len(result.tokens)
            yield replace(result, phases=phases.seconds)


class _Phases:
    """Seconds of a step by its parts. On a CPU only: elsewhere the host would time what it issues, not what runs."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._is_timed = device.type == "cpu"
        self._last = time.perf_counter()

    def end(self, phase: str) -> None:
        """The time since the last phase was this one's."""
        if self._is_timed:
            now = time.perf_counter()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
            self._last = now
