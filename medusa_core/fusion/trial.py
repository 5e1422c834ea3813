"""Whether a fused pass gives what the model's own modelling code gives, found out on random input."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medusa_core.fusion.kernels import Kernels
from medusa_core.fusion.model import FusedModel, Pass
from medusa_core.kv_cache import KVCache
from medusa_core.reasons import in_one_line

__all__ = ["Trial", "fuse"]

_log = logging.getLogger(__name__)

# Largest difference as a share of the largest value. What a wrong formula changes is far beyond; what another order of
# the same sums changes grows with the depth of the model and is far below.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
# As many nodes as make a tile of every size.
_NODES, _CACHED = 15, 6


@dataclass(frozen=True)
class Trial:
    """What it takes to run a model by itself: its own pass, a cache for it, and how a mask [N, S] bool is added."""

    own: Pass
    new_cache: Callable[[int], KVCache]
    additive: Callable[[Tensor], Tensor]
    vocab_size: int


def fuse(model: Any, kinds: Collection[str], positions: int, kernels: Kernels, trial: Trial) -> Pass:
    """The fused pass of a model, or its own where the two differ or its structure is not known; the log says which.

    Arguments as FusedModel takes them.
    """
    family = model.config.model_type
    try:
        fused = FusedModel(model, kinds, positions, kernels)
        error = _difference(fused, model, kinds, positions, trial)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as reason:
        _log.info("%s runs on its own modelling code: %s", family, in_one_line(reason))
        return trial.own
    if not error <= _TOLERANCE.get(model.dtype, 0.0):
        _log.info("%s runs on its own modelling code: fused, its results differ by %.1e", family, error)
        return trial.own
    _log.info("%s runs in fused form, equal to its own modelling code up to %.1e", family, error)
    return fused


@torch.inference_mode()
def _difference(fused: Pass, model: Any, kinds: Collection[str], positions: int, trial: Trial) -> float:
    """Largest difference of hidden states, logits and cached rows, each as a share of its largest value.

    Every kind of layer has a random mask of its own, so that the wrong one would be noticed.
    """
    generator = torch.Generator().manual_seed(0)
    rows = _CACHED + _NODES
    device = model.device
    tokens = torch.randint(0, trial.vocab_size, (_NODES,), generator=generator).to(device)
    places = torch.randint(0, positions, (_NODES,), generator=generator).to(device)
    places[-1] = positions - 1  # what only happens far behind happens there, if anywhere
    masks = {}
    for kind in kinds:
        allowed = torch.rand(_NODES, rows, generator=generator) < 0.7
        allowed[:, _CACHED:] |= torch.eye(_NODES, dtype=torch.bool)
        masks[kind] = trial.additive(allowed.to(device))
    found: list[tuple[Tensor, ...]] = []
    for compute in (trial.own, fused):
        cache = trial.new_cache(rows)
        cached = torch.randn(cache.buffer.shape, generator=torch.Generator().manual_seed(1))
        cache.buffer.copy_(cached)
        cache.prepare(torch.tensor(_CACHED, device=device), _NODES, rows)
        found.append((*compute(tokens, places, masks, cache, None), cache.buffer))
    pairs = zip(*found, strict=True)
    errors = [(theirs.float() - ours.float()).abs().max() / theirs.float().abs().max() for theirs, ours in pairs]
    return float(torch.stack(errors).max())  # the largest of numbers one of which is none is none
