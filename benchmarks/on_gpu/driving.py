"""Steps of any drafter behind a context of any length, without having computed the context."""

import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.on_gpu.timing import attention_kernels
from medusa_core.acceptance import make_rule
from medusa_core.adjustments import Adjustments
from medusa_core.backbone import Backbone
from medusa_core.config import SpeculationParams
from medusa_core.drafters import Asked, Drafter, DrafterSource, DraftState
from medusa_core.heads import DraftHeads
from medusa_core.kv_cache import KVCache
from medusa_core.memory import Memory
from medusa_core.runners import DecodePlan, MakeRunner, Runner
from medusa_core.runners.capture import CudaLauncher, Launcher, PlainLauncher
from medusa_core.runners.prompts import coarse_bucket
from medusa_core.sampling import Sampler, SamplingParams

__all__ = ["GREEDY", "Bench", "launcher_for"]

GREEDY = SamplingParams(0.0, seed=0)
_DEPTH = 8


def launcher_for(device: torch.device) -> Launcher:
    """What records on this device, or its stand-in."""
    return CudaLauncher(device) if device.type == "cuda" else PlainLauncher()


@dataclass(frozen=True)
class _Always:
    """One drafter for all steps."""

    drafter: Drafter

    def next(self, past: int, forced: int = 0) -> Drafter:
        """See Drafting.next."""
        return self.drafter


@dataclass(frozen=True)
class Bench:
    """A model with its heads and a cache full of noise."""

    backbone: Backbone
    heads: DraftHeads | None
    cache: KVCache
    drafters: DrafterSource
    memory: Memory

    @classmethod
    @torch.inference_mode()
    def around(cls, backbone: Backbone, heads: DraftHeads | None, most_nodes: int, rows: int) -> "Bench":
        """Trees of heads, lookup and recycling, as the engine makes them, of up to so many nodes."""
        device = backbone.device
        num_heads = heads.config.num_heads if heads is not None else 0
        ones = torch.ones(num_heads, device=device)
        drafters = DrafterSource(heads, ones, most_nodes, _DEPTH, True, device, backbone.vocab_size)
        cache = backbone.new_cache(rows)
        cache.buffer.normal_(std=0.1)
        return cls(backbone, heads, cache, drafters, Memory(backbone.vocab_size, device, True))

    def drafter(self, nodes: int, context: int) -> Drafter:
        """Who drafts trees of so many nodes."""
        return self.drafters.get(Asked(SpeculationParams("tree", nodes), (), context, False))

    @torch.inference_mode()
    def state(self, context: int, sampling: SamplingParams) -> DraftState:
        """A sequence of random tokens."""
        device = self.backbone.device
        generator = torch.Generator().manual_seed(1)
        history = torch.randint(0, self.backbone.vocab_size, (self.cache.rows,), generator=generator).to(device)
        hidden = torch.randn(self.backbone.hidden_size, generator=generator).to(self.cache.buffer)
        sampler = Sampler.of_request(sampling, device)
        return DraftState(
            root=history[context].clone(),
            hidden=hidden,
            past=torch.tensor(context, device=device),
            history=history,
            sampler=None if sampler.is_greedy else sampler,
            memory=self.memory,
        )

    @torch.inference_mode()
    def attention_kernels(self, nodes: int, context: int) -> list[str]:
        """What computes attention in a pass over a tree of so many nodes."""
        state = self.state(context, GREEDY)
        tree = self.drafter(nodes, context).draft(state)
        rows = min(self.cache.rows, coarse_bucket(context + nodes))
        return attention_kernels(
            lambda: self.backbone.forward(tree, state.past, self.cache, rows), self.backbone.device
        )

    def steps(self, runner: Runner, nodes: int, context: int, sampling: SamplingParams) -> Iterator[Any]:
        """Steps behind so many rows, without end."""
        device = self.backbone.device
        adjustments = Adjustments.of_request(sampling, [], (), self.backbone.vocab_size, device)
        rule = make_rule(Sampler.of_request(sampling, device), SpeculationParams())
        plan = DecodePlan(_Always(self.drafter(nodes, context)), adjustments, rule, None, None)
        return runner.steps(plan, self.state(context, sampling), context)

    def step_ms(
        self, make_runner: MakeRunner, nodes: int, context: int, count: int, sampling: SamplingParams = GREEDY
    ) -> float:
        """Median milliseconds from one step's result to the next's, once the step is recorded."""
        runner = make_runner(self.backbone, self.cache)
        taken = []
        with closing(self.steps(runner, nodes, context, sampling)) as steps:
            for _ in range(8):
                next(steps)
            last = time.perf_counter()
            for _ in range(count):
                next(steps)
                now = time.perf_counter()
                taken.append(1e3 * (now - last))
                last = now
        del runner
        gc.collect()  # recordings refer to their runner, and hold memory of the device
        return statistics.median(taken)
