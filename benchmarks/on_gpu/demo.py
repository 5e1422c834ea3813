"""The shipped model end to end: are recorded steps ordinary steps, and where do answers part in bfloat16."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.on_gpu.timing import Budget
from medusa_core.config import EngineConfig, RunnerName, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.evaluation.answers import Answer, EnginePeer, tokens_per_step
from medusa_core.evaluation.prompts import Prompt, default_prompts, fitting, of_each_kind, read_prompts
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec

__all__ = ["demo_part", "parting"]

_NODES, _CONTEXT = 32, 512
PLAIN, TREE = SpeculationParams("off"), SpeculationParams("tree", _NODES)


def demo_part(device: torch.device, size: int, budget: Budget) -> dict[str, Any]:
    """Answers of the demo model; `size` says how many of each kind of prompt, and how long."""
    codec = TextCodec.load("demo")
    length = 8 * min(size, 16)
    known = fitting(read_prompts(default_prompts("demo", "prompts"), codec), _CONTEXT, length)
    prompts = of_each_kind(known, max(1, size // 4))
    recording: RunnerName = "cuda_graph" if device.type == "cuda" else "eager"
    result: dict[str, Any] = {"prompts": len(prompts), "max_tokens": length, "nodes": _NODES}
    answers: dict[str, list[Answer]] = {}
    for dtype in ("float32", "bfloat16"):
        for runner in dict.fromkeys(("eager", recording)):
            if not budget.has_room(f"demo, {dtype}, {runner}"):
                continue
            engine = load(device, dtype, runner)
            for name, speculation in (("plain", PLAIN), ("tree", TREE)):
                answers[f"{dtype} {runner} {name}"] = answered(engine, speculation, prompts, length)
    for name, found in answers.items():
        speed = statistics.median(answer.step_tokens / answer.seconds for answer in found if answer.step_tokens > 0)
        result[name] = {"tokens_per_step": tokens_per_step(found), "tokens_per_second": speed}
        print(f"{name:28} {result[name]['tokens_per_step']:6.2f} tokens per step {speed:8.0f} tokens per second")
    for one, other in (
        ("float32 eager plain", "float32 eager tree"),
        ("float32 eager plain", f"float32 {recording} tree"),
        ("bfloat16 eager plain", "bfloat16 eager tree"),
        (f"bfloat16 {recording} plain", f"bfloat16 {recording} tree"),
    ):
        if one in answers and other in answers:
            result[f"{one} against {other}"] = places = parting(answers[one], answers[other])
            print(f"{one} against {other}: {len(places)} of {len(prompts)} answers part, at {places}")
    return result


def load(device: torch.device, dtype: str, runner: RunnerName) -> Engine:
    """The demo model, without the trials of a server's start."""
    config = EngineConfig(
        "demo", device=str(device), dtype=dtype, runner=runner, max_context=_CONTEXT, tree_nodes=_NODES, self_test=False
    )
    return Engine.load(config)


def answered(engine: Engine, speculation: SpeculationParams, prompts: Sequence[Prompt], length: int) -> list[Answer]:
    """Every prompt's greedy answer, the first one twice to warm up."""
    peer, sampling = EnginePeer(engine, speculation), SamplingParams(0.0)
    peer.answer(prompts[0], sampling, length)
    return [peer.answer(prompt, sampling, length) for prompt in prompts]


def parting(ones: Sequence[Answer], others: Sequence[Answer]) -> list[int]:
    """The place of the first token that differs, for each pair of answers that differ."""
    places = []
    for one, other in zip(ones, others, strict=True):
        if one.tokens != other.tokens:
            pairs = zip(one.tokens, other.tokens, strict=False)
            shorter = min(len(one.tokens), len(other.tokens))
            places.append(next((place for place, (a, b) in enumerate(pairs) if a != b), shorter))
    return places
