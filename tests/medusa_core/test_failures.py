"""Memory that runs out, a device that is lost, a bug in a step: what the next request finds of the one that failed."""

import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medusa_core.engine import Engine
from medusa_core.errors import DeviceFault, OutOfMemory
from medusa_core.generation import GenerationRequest
from medusa_core.runners import EagerRunner, MakeRunner
from medusa_core.runners.capture import PlainLauncher
from medusa_core.runners.cuda_graph import GraphRunner
from medusa_core.sampling import SamplingParams
from tests.cast import GREEDY, MockBackbone, make_engine, random_heads, run

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)


class Fails(TorchDispatchMode):
    """Lets so many tensor operations pass, then raises at one; `left` is negative once it has."""

    def __init__(self, error: Exception, left: int) -> None:
        super().__init__()
        self.left = left
        self._error = error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == -1:
            raise self._error
        return func(*args, **(kwargs if kwargs is not None else {}))


# with a store that holds both, so that a request begins by saving rows and by bringing others back
LONG, OTHER = PROMPT * 6, PROMPT[::-1] * 6
AFTERWARDS = {prompt: run(make_engine(MockBackbone()), prompt, max_tokens=8) for prompt in (LONG, OTHER)}


def fail_at(operation: int, error: Exception, make_runner: MakeRunner) -> tuple[Engine, str | None]:
    """An engine one of whose tensor operations failed in the midst of its third request, and what that one raised."""
    backbone = MockBackbone()
    engine = make_engine(backbone, random_heads(backbone.lm_head), prefill_chunk=16, make_runner=make_runner)
    for prompt in (LONG, OTHER):
        run(engine, prompt, max_tokens=3)
    sampling = SamplingParams(0.8, seed=5, repetition_penalty=1.1)
    failing = Fails(error, operation)
    try:
        with failing:
            run(engine, (*LONG[:30], *PROMPT), sampling, max_tokens=6, top_logprobs=2)
    except (OutOfMemory, RuntimeError, LookupError) as raised:
        return engine, type(raised).__name__
    return engine, "nothing" if failing.left < 0 else None


def plain_graph_runner(backbone: Any, cache: Any) -> Any:
    return GraphRunner(backbone, cache, PlainLauncher())


@pytest.mark.parametrize("make_runner", [EagerRunner, plain_graph_runner])
def test_wherever_memory_runs_out_the_next_requests_are_answered_as_if_they_were_the_first(
    make_runner: MakeRunner,
) -> None:
    told = []
    # once at every tenth one it went well; a prime stride meets operations of each part of a request and a step
    for operation in itertools.count(3, 97):
        engine, raised = fail_at(operation, torch.OutOfMemoryError("CUDA out of memory"), make_runner)
        if raised is None:
            break
        told.append(raised)
        for prompt in (OTHER, LONG):
            assert run(engine, prompt, max_tokens=8) == AFTERWARDS[prompt], f"after operation {operation}"

    # without room for copies of earlier rows the request goes on without them
    assert set(told) <= {"OutOfMemory", "nothing"}
    assert told.count("OutOfMemory") > 5


@pytest.mark.parametrize("error", [RuntimeError("sizes do not match"), IndexError("out of range")])
def test_after_a_bug_in_a_step_nothing_that_the_request_left_is_used(error: Exception) -> None:
    engine, raised = fail_at(400, error, EagerRunner)
    [begun, *rest] = engine.generate(GenerationRequest(OTHER, GREEDY, max_tokens=8))

    assert raised == type(error).__name__
    assert begun.prompt is not None and begun.prompt.cached_tokens == 0
    assert [token for delta in (begun, *rest) for token in delta.tokens] == AFTERWARDS[OTHER]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[...] DefaultCPUAllocator: can't allocate memory")])
def test_a_processor_without_memory_is_told_alike(error: RuntimeError | MemoryError) -> None:
    engine, raised = fail_at(400, error, EagerRunner)

    [begun, *rest] = engine.generate(GenerationRequest(LONG, GREEDY, max_tokens=8))

    assert raised == "OutOfMemory"
    # nothing that is kept for later requests may be what they fail for
    assert begun.prompt is not None and begun.prompt.cached_tokens == 0
    assert [token for delta in (begun, *rest) for token in delta.tokens] == AFTERWARDS[LONG]


def test_a_lost_device_is_not_touched_again() -> None:
    engine = make_engine(MockBackbone())
    fault, later = RuntimeError("CUDA error: an illegal memory access was encountered"), 0
    with pytest.raises(DeviceFault, match="illegal memory access"), Fails(fault, 100) as failing:
        run(engine, LONG, max_tokens=8)
        later = failing.left

    assert later == 0 and failing.left == -1
