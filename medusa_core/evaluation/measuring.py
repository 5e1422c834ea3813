"""What trees of several sizes cost and bring on this machine: the two curves that the choice of a size rests on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice

from medusa_core.calibration import LatencyCurve
from medusa_core.config import SpeculationParams
from medusa_core.engine import Engine
from medusa_core.errors import ConfigurationError
from medusa_core.evaluation.answers import EnginePeer, Watch, tokens_per_step
from medusa_core.evaluation.prompts import Prompt
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams

__all__ = ["LatencyPlan", "count_tokens_per_step", "latency_curve", "sensible_nodes"]

# Beyond a CPU's few rows computing the nodes costs far more than they bring; a card has room for many.
_NODES = {"cpu": (1, 2, 4, 8, 12, 16, 24, 32, 48, 64), "cuda": (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)}


@dataclass(frozen=True)
class LatencyPlan:
    """How a latency curve is measured.

    context:    tokens in the cache, fewer where the model holds fewer.
    rounds:     visits to every size, interleaved, so that what else the machine does falls on all alike.
    steps:      timed steps of one visit; one more goes before them untimed.
    is_sampled: whether tokens are drawn at temperature 1.
    """

    context: int = 256
    rounds: int = 8
    steps: int = 5
    is_sampled: bool = False


def sensible_nodes(device: str) -> tuple[int, ...]:
    """The sizes worth measuring on a device such as `cpu` or `cuda:0`."""
    return _NODES[device.partition(":")[0]]


def latency_curve(
    engine: Engine, prompts: Sequence[Prompt], nodes: Sequence[int], plan: LatencyPlan, watch: Watch
) -> LatencyCurve:
    """Seconds of one whole step by tree nodes, heads and tree building included, behind a real context.

    The lower quartile of many steps: what else a machine does only ever adds to a step, and on a busy one it adds so
    much to some that a median would prefer the size that happened to be left alone.

    Raises ConfigurationError for a size that the engine was not loaded for.
    """
    largest = max(nodes)
    if largest > engine.info.tree_nodes:
        raise ConfigurationError(f"trees of {largest} nodes were asked for, the engine holds {engine.info.tree_nodes}")
    room = (plan.steps + 1) * (engine.info.max_depth + 1) + 1
    context = min(plan.context, engine.info.max_context - room)
    if context < 1:
        raise ConfigurationError(
            f"a context of {engine.info.max_context} tokens is too short to time steps in; it must exceed {room}"
        )
    tokens = tuple(islice(cycle(chain.from_iterable(prompt.tokens for prompt in prompts)), context))
    seconds: dict[int, list[float]] = {count: [] for count in nodes}
    for round_index in range(plan.rounds + 1):
        for index, count in enumerate(nodes):
            watch("timing steps", (round_index + index / len(nodes)) / (plan.rounds + 1))
            timed = list(islice(_steps(engine, tokens, count, plan.is_sampled), plan.steps + 1))
            if round_index > 0:  # the first round warms up every size
                seconds[count] += timed[1:]
    quartiles = {count: sorted(found)[len(found) // 4] for count, found in seconds.items()}
    return LatencyCurve(engine.info.place, context, quartiles, plan.is_sampled)


def _steps(engine: Engine, tokens: tuple[int, ...], nodes: int, is_sampled: bool) -> Iterator[float]:
    """Seconds of one step after the other; the prompt's rows stay in the cache from visit to visit."""
    speculation = SpeculationParams(mode="tree", max_nodes=nodes)
    sampling = SamplingParams(temperature=1.0, seed=0) if is_sampled else SamplingParams(temperature=0.0)
    request = GenerationRequest(tokens, sampling, speculation, ignore_eos=True)
    for delta in engine.generate(request):
        if delta.step is not None:
            yield delta.step.seconds


def count_tokens_per_step(
    engine: Engine, prompts: Sequence[Prompt], nodes: Sequence[int], max_tokens: int, watch: Watch
) -> dict[int, float]:
    """Tokens per step, bonus included, by tree nodes: greedy answers with dynamic trees, all prompts together."""
    found: dict[int, float] = {}
    for index, count in enumerate(nodes):
        peer = EnginePeer(engine, SpeculationParams(mode="tree", max_nodes=count))
        answers = []
        for place, prompt in enumerate(prompts):
            watch("counting tokens per step", (index + place / len(prompts)) / len(nodes))
            answers.append(peer.answer(prompt, SamplingParams(temperature=0.0), max_tokens))
        counted = tokens_per_step(answers)
        if counted is not None:
            found[count] = counted
    return found
