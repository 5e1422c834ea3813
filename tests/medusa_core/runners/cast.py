"""What the tests of runners share: answers step by step, without an engine around them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medusa_core.acceptance import make_rule
from medusa_core.adjustments import Adjustments
from medusa_core.config import SpeculationParams
from medusa_core.constraints import Constraint
from medusa_core.decoding import OrdinaryPrompts, prefill
from medusa_core.drafters import Drafter, DraftState
from medusa_core.kv_cache import KVCache
from medusa_core.memory import Memory
from medusa_core.runners import DecodePlan, Runner, StepResult, unpack_masks
from medusa_core.sampling import Sampler, SamplingParams
from medusa_core.tree import CandidateTree
from tests.cast import GREEDY

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


class Turns:
    """Drafters that take turns, step by step."""

    def __init__(self, *drafters: Drafter) -> None:
        self._drafters, self._asked = drafters, 0

    def next(self, past: int, forced: int = 0) -> Drafter:
        self._asked += 1
        return self._drafters[(self._asked - 1) % len(self._drafters)]


def never() -> bool:
    return False


def nothing() -> None:
    pass


@lru_cache
def memory_of(vocab_size: int, device: torch.device) -> Memory:
    """One for all answers, as an engine has: what was recorded reads and changes it where it is."""
    return Memory(vocab_size, device)


def steps_of(
    runner: Runner,
    backbone: Any,
    cache: KVCache,
    drafters: Sequence[Drafter],
    num_steps: int,
    sampling: SamplingParams = GREEDY,
    prompt: Sequence[int] = PROMPT,
    ends: Sequence[int] = (),
    speculation: SpeculationParams | None = None,
    top_logprobs: int | None = None,
    constraint: Constraint | None = None,
    before_steps: Callable[[], None] = nothing,
    is_watched: bool = False,
) -> list[StepResult]:
    """The first steps of an answer, without the time they took."""
    device = backbone.device
    sampler = Sampler.of_request(replace(sampling, seed=5), device)
    adjustments = Adjustments.of_request(sampling, prompt, ends, backbone.vocab_size, device)
    rule = make_rule(sampler, speculation if speculation is not None else SpeculationParams())
    plan = DecodePlan(Turns(*drafters), adjustments, rule, constraint, top_logprobs)
    cache.tokens.clear()
    computed = prefill(OrdinaryPrompts(backbone, cache), cache, prompt, 512, never, None)
    assert computed is not None
    past, counts = torch.tensor(len(prompt), device=device), adjustments.start()
    end = CandidateTree.chain(torch.tensor(prompt[-1:], device=device))
    allowed = unpack_masks([constraint.allowed()], backbone.vocab_size, device) if constraint is not None else None
    root = sampler.draw(adjustments.apply(computed.last.logits, end, past - 1, counts, allowed), end.depth, past, 0)
    if constraint is not None:
        constraint.advance(root.tolist())
    history = torch.zeros(cache.rows, dtype=torch.long, device=device)
    history[: len(prompt) + 1] = torch.tensor([*prompt, int(root)], device=device)
    counts = adjustments.count(counts, root, torch.ones_like(past))
    coupled = None if sampler.is_greedy else sampler
    memory = memory_of(backbone.vocab_size, device)
    memory.forget_outcomes()
    memory.forget_successors()
    state = DraftState(root[0], computed.last.hidden[0], past, counts, history, None, coupled, memory, is_watched)
    before_steps()
    return [replace(result, phases={}) for result in islice(runner.steps(plan, state, len(prompt)), num_steps)]


def tokens_of(results: Sequence[StepResult]) -> list[int]:
    return [token for result in results for token in result.tokens]


class Tape(TorchDispatchMode):
    """Operations as they happen, to be repeated over the very same tensors: what a CUDA graph is, on any device.

    Like one, it knows nothing of Python: what a step read from the host when it was recorded, it reads for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs if kwargs is not None else {}
        made = func(*args, **named)
        self._operations.append((func, args, named, made))
        return made

    def play(self) -> None:
        for func, args, named, made in self._operations:
            for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **named)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeLauncher:
    """Records on tapes, and keeps a list of what happened."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def warm_up(self, work: Callable[[], None]) -> None:
        self.log.append("warm up")
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Recording does the work once, so the first time it is played there is nothing to do."""
        self.log.append("capture")
        tape, is_done = Tape(), [True]
        with tape:
            work()

        def replay() -> None:
            self.log.append("replay")
            if is_done:
                is_done.clear()
            else:
                tape.play()

        return replay

    def fetch(self, row: torch.Tensor, slot: int) -> Callable[[], list[int]]:
        self.log.append(f"copy {slot}")
        values: list[int] = row.tolist()

        def read() -> list[int]:
            self.log.append(f"read {slot}")
            return values

        return read
