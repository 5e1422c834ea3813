"""How steps are executed: one file for each way, listed in RUNNERS by the names that operators use."""

from collections.abc import Callable

import torch

from medusa_core.backbone import Backbone
from medusa_core.config import RunnerName
from medusa_core.errors import ConfigurationError
from medusa_core.kv_cache import KVCache
from medusa_core.runners.capture import CudaLauncher
from medusa_core.runners.cuda_graph import GraphRunner
from medusa_core.runners.eager import EagerRunner
from medusa_core.runners.grammar import unpack_masks
from medusa_core.runners.prompts import prompt_lengths
from medusa_core.runners.runner import (
    DecodePlan,
    DraftedNode,
    Drafting,
    Runner,
    StepDetail,
    StepResult,
    TokenLogprobs,
    to_host,
)

__all__ = [
    "RUNNERS",
    "DecodePlan",
    "DraftedNode",
    "Drafting",
    "EagerRunner",
    "GraphRunner",
    "MakeRunner",
    "Runner",
    "StepDetail",
    "StepResult",
    "TokenLogprobs",
    "choose_runner",
    "prompt_lengths",
    "to_host",
    "unpack_masks",
]

MakeRunner = Callable[[Backbone, KVCache], Runner]

RUNNERS: dict[RunnerName, MakeRunner] = {
    "eager": EagerRunner,
    "cuda_graph": lambda backbone, cache: GraphRunner(backbone, cache, CudaLauncher(backbone.device)),
}


def choose_runner(name: RunnerName, device: torch.device) -> MakeRunner:
    """How steps reach a device; `auto` records them where that can be done."""
    if name == "auto":
        return RUNNERS["cuda_graph" if device.type == "cuda" else "eager"]
    if name == "cuda_graph" and device.type != "cuda":
        raise ConfigurationError(f"runner is cuda_graph, which needs a CUDA device and not {device}; take auto")
    return RUNNERS[name]
