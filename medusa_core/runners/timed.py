"""Steps that are run for the time they take."""

import time
from collections.abc import Callable, Iterator
from itertools import islice

import torch

from medusa_core.acceptance import make_rule
from medusa_core.adjustments import Adjustments
from medusa_core.backbone import Backbone
from medusa_core.config import SpeculationParams
from medusa_core.drafters import Asked, Drafters, DraftState, Paced
from medusa_core.kv_cache import KVCache
from medusa_core.memory import Memory
from medusa_core.pacing import FixedPace, Situation
from medusa_core.runners.runner import DecodePlan, Runner
from medusa_core.sampling import Sampler, SamplingParams

__all__ = ["timed_steps"]


def timed_steps(
    backbone: Backbone, cache: KVCache, runner: Runner, drafters: Drafters, memory: Memory
) -> Callable[[int, Situation], Iterator[float]]:
    """What begins to decode with trees of so many nodes in a situation, and yields the seconds of each step.

    The rows hold whatever the cache held there: what a step costs does not depend on what it computes, and so long
    contexts cost nothing to come by. Overwrites the cache's rows and adds to the memory.
    """
    device = backbone.device
    greedy, sampled = (Sampler.of_request(SamplingParams(heat, seed=0), device) for heat in (0.0, 1.0))
    adjustments = Adjustments.of_request(SamplingParams(0.0), (0,), (), backbone.vocab_size, device)
    paced: dict[int, Paced] = {}
    settled: set[tuple[int, Situation]] = set()
    # On a CPU the time for which this thread ran: on a busy machine that is all that can be compared.
    clock = time.thread_time if device.type == "cpu" else time.perf_counter

    def paced_of(nodes: int) -> Paced:
        # kept, so that a runner that prepares itself for a drafter does so once
        return paced.setdefault(
            nodes, Paced(drafters, Asked(SpeculationParams("tree"), (), 1, False), FixedPace(nodes))
        )

    def begin(nodes: int, situation: Situation) -> Iterator[float]:
        sampler, rows = sampled if situation.is_sampled else greedy, situation.rows
        plan = DecodePlan(paced_of(nodes), adjustments, make_rule(sampler, SpeculationParams()), None, None)
        state = DraftState(
            root=torch.tensor(0, device=device),
            hidden=torch.zeros(backbone.hidden_size, dtype=cache.buffer.dtype, device=device),
            past=torch.tensor(rows, device=device),
            counts=adjustments.start(),
            history=torch.zeros(cache.rows, dtype=torch.long, device=device),
            sampler=None if sampler.is_greedy else sampler,
            memory=memory,
        )
        if (nodes, situation) not in settled:
            settled.add((nodes, situation))
            for _ in islice(runner.steps(plan, state, rows), runner.settling_steps):
                pass
        before = clock()
        for _ in runner.steps(plan, state, rows):
            now = clock()
            yield now - before
            before = now

    return begin
