"""From the operator's choices to the parts of an engine: the base model, its heads, who drafts, and what is known."""

import logging
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medusa_core.adapters import find_adapter
from medusa_core.attending import attend_by_length
from medusa_core.backbone import Backbone, TransformersBackbone
from medusa_core.calibration import CALIBRATION_FILE, Calibration, Place, choose_nodes
from medusa_core.checkpoints import find_heads, heads_location, load_heads, locate_heads
from medusa_core.config import EngineConfig, model_location
from medusa_core.drafters import Drafters, DrafterSource, StaticTrees
from medusa_core.errors import CheckpointError, ConfigurationError
from medusa_core.generation import EngineInfo
from medusa_core.heads import DraftHeads
from medusa_core.loading import choose_device, choose_dtype, default_context, load_backbone, read_config
from medusa_core.memory import Memory
from medusa_core.quantization import default_nodes, judge_model
from medusa_core.quantization.judgement import Judgement

__all__ = ["Parts", "assemble", "default_sampling", "device_name"]

_log = logging.getLogger(__name__)

# The sizes of which the fastest is taken at every step; few, since each has to be timed and prepared for.
_TREE_SIZES = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 8, 16, 32, 64)}
# Where the size is fixed and nobody has measured: a small model on a CPU is best served by a small tree, a GPU has room
# for more.
_DEFAULT_TREE_NODES = {"cpu": 8, "cuda": 48}


@dataclass(frozen=True)
class Parts:
    """What an engine is made of."""

    backbone: Backbone
    heads: DraftHeads | None
    drafters: Drafters
    info: EngineInfo
    memory: Memory


def assemble(config: EngineConfig, progress: Callable[[str, float], None], calibration: Calibration | None) -> Parts:
    """Load what was chosen; see Engine.load, whose arguments and errors these are."""
    location = model_location(config.model)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    # With a thread on every core any other process stalls the barrier of each small matrix product.
    torch.set_num_threads(config.num_threads if config.num_threads is not None else max(1, _cores() - 1))
    progress("loading the model", 0.0)
    text_config = read_config(location).get_text_config()
    max_context = config.max_context if config.max_context is not None else default_context(text_config)
    source = heads_location(config.heads) if config.heads is not None else find_heads(location)
    adapter = find_adapter(source) if source is not None and config.adapter else None
    backbone = load_backbone(location, device, dtype, max_context, config.quantize, adapter)
    weights = judge_model(backbone.model)
    if config.fuse:
        backbone.fuse(max_context, config.compile)
    if config.attention == "device_length":
        attend_by_length(backbone)
    if config.compile_steps:
        _compile_steps(backbone, config)
    progress("loading the heads", 0.8)
    # what the repository of a hub id holds is known once the model was fetched
    source = source if source is not None else find_heads(location)
    stored = locate_heads(source) if source is not None else None
    heads = load_heads(stored, backbone.lm_head, location) if stored is not None else None
    generation = backbone.model.generation_config
    if heads is not None:
        if config.draft_vocabulary is not None:
            heads = heads.drafting_only(_drafted(config.draft_vocabulary, backbone, generation.eos_token_id))
        if config.int8_heads == "on" or (config.int8_heads == "auto" and device.type == "cpu"):
            heads.choose_lm_head_kernel(backbone.kernels.multiply_by_int8)
        if config.fuse:
            heads.join_blocks(backbone.kernels.multiply_by)
    else:
        _name_what_needs_heads(config)
    if calibration is None and stored is not None:
        calibration = _find_calibration(stored.parent)
    temperatures = _temperatures(calibration, heads.config.num_heads if heads is not None else 0, device)
    if heads is not None and heads.config.num_heads > config.max_depth:
        raise ConfigurationError(
            f"max_depth is {config.max_depth}, the heads reach {heads.config.num_heads} deep; raise it"
        )
    dtype_name = str(backbone.dtype).removeprefix("torch.")
    threads = torch.get_num_threads() if device.type == "cpu" else None
    quantization = weights.label if weights is not None else "none"
    place = Place(device_name(device), dtype_name, threads, quantization, backbone.kernels_label)
    tree_nodes, reason = _tree_size(config, calibration, place, weights)
    if config.tree == "static" and heads is not None and calibration is None:
        raise ConfigurationError(
            f"tree is static, but how often the heads in {source} are right is not known; run `medusa calibrate`, "
            "or take dynamic trees"
        )
    info = EngineInfo(
        model=config.model,
        device=str(device),
        dtype=dtype_name,
        max_context=max_context,
        vocab_size=backbone.vocab_size,
        eos_token_ids=_as_tuple(generation.eos_token_id),
        num_heads=heads.config.num_heads if heads is not None else 0,
        heads=str(source) if source is not None else None,
        tree_nodes=tree_nodes,
        max_depth=config.max_depth,
        plain_step_s=0.0,
        default_sampling=default_sampling(generation),
        place=place,
        calibration=calibration if heads is not None else None,
        tree=config.tree,
        tree_reason=reason,
        adapter=str(adapter) if adapter is not None else None,
        tree_sizes=_tree_sizes(config, device.type, weights, heads is not None),
        prompt_lookup=config.prompt_lookup,
    )
    recycled = backbone.vocab_size if config.recycling else None
    drafters: Drafters = DrafterSource(
        heads, temperatures, info.most_nodes, config.max_depth, config.prompt_lookup, device, recycled
    )
    if heads is not None:
        drafters = StaticTrees(heads, temperatures, calibration, info.most_nodes, config.tree == "static", drafters)
    return Parts(backbone, heads, drafters, info, Memory(backbone.vocab_size, device, config.recycling))


def _compile_steps(backbone: TransformersBackbone, config: EngineConfig) -> None:
    """Only recorded steps have few shapes: an ordinary one's rows grow by 64 at a time."""
    if backbone.device.type == "cuda" and config.runner != "eager":
        backbone.compile_steps("inductor")
    else:
        _log.warning("steps are not compiled: only recorded ones are, on CUDA and without runner eager")


def _drafted(count: int, backbone: Backbone, eos: int | list[int] | None) -> torch.Tensor:
    """The tokens [V'] int64 that heads shall propose; see EngineConfig.draft_vocabulary."""
    tokens = {*range(min(count, backbone.vocab_size)), *_as_tuple(eos)}
    return torch.tensor(sorted(tokens), device=backbone.device)


def _name_what_needs_heads(config: EngineConfig) -> None:
    """Nothing else would show that these options change nothing."""
    asked = {"tree": config.tree == "static", "draft_vocabulary": config.draft_vocabulary is not None}
    for name in [name for name, is_asked in asked.items() if is_asked]:
        _log.warning("%s is %s, which concerns heads alone, and there are none", name, getattr(config, name))


def _tree_size(
    config: EngineConfig, calibration: Calibration | None, place: Place, weights: Judgement | None
) -> tuple[int, str]:
    """Nodes of a tree and why so many; the log says it, and what the weights mean for trees."""
    if weights is not None:
        _log.log(logging.WARNING if weights.most_nodes == 1 else logging.INFO, "%s", weights.statement)
    device = "cpu" if place.threads is not None else "cuda"
    nodes, reason = choose_nodes(calibration, place, default_nodes(_DEFAULT_TREE_NODES[device], weights))
    if config.tree_nodes is not None:
        nodes, reason = config.tree_nodes, "as asked for"
    _log.info("where their size is fixed, trees are %s and have %d nodes: %s", config.tree, nodes, reason)
    return nodes, reason


def _tree_sizes(config: EngineConfig, device_type: str, weights: Judgement | None, has_heads: bool) -> tuple[int, ...]:
    """The sizes of trees to choose from; empty where one was asked for, nobody drafts or no tree pays."""
    is_fixed = config.tree_nodes is not None or (config.tree == "static" and has_heads)
    if is_fixed or not (has_heads or config.prompt_lookup or config.recycling):
        return ()
    most = default_nodes(max(_TREE_SIZES[device_type]), weights)
    sizes = tuple(size for size in _TREE_SIZES[device_type] if size <= most)
    return sizes if len(sizes) > 1 else ()


def default_sampling(generation: Any) -> dict[str, float | int]:
    """Sampling values a generation_config sets; greedy ones are temperature 0."""
    names = ["repetition_penalty"]
    if generation.do_sample:
        names += ["temperature", "top_p", "top_k", "min_p"]
    found: dict[str, Any] = {name: getattr(generation, name, None) for name in names}
    if generation.do_sample is False:
        found["temperature"] = 0.0
    return {name: value for name, value in found.items() if value is not None and not (name == "top_k" and value < 1)}


def _as_tuple(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _find_calibration(folder: Path) -> Calibration | None:
    """What stands beside the heads."""
    file = folder / CALIBRATION_FILE
    return Calibration.load(file) if file.is_file() else None


def _temperatures(calibration: Calibration | None, num_heads: int, device: torch.device) -> torch.Tensor:
    """Head temperatures [K]; ones where nobody calibrated them."""
    if calibration is None:
        return torch.ones(num_heads, device=device)
    if calibration.num_heads < num_heads:
        raise CheckpointError(
            f"the calibration knows {calibration.num_heads} heads, there are {num_heads}; run `medusa calibrate` again"
        )
    return torch.tensor(calibration.temperatures[:num_heads], dtype=torch.float32, device=device)


def _cores() -> int:
    """Cores this process may use: containers are given fewer than the machine has, by name or by a share of time."""
    named = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = Path("/sys/fs/cgroup/cpu.max")
    share, period = limit.read_text(encoding="utf-8").split() if limit.is_file() else ("max", "1")
    cores = named if named is not None else 1
    return cores if share == "max" else min(cores, math.ceil(int(share) / int(period)))


def device_name(device: torch.device) -> str:
    """What the processor or the card calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.is_file() else []
    own = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return own if own else platform.machine()
