"""Whether a model reads its cache by buckets of rows, or by their number on the device where a trial allows that."""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from medusa_core.backbone import TransformersBackbone
from medusa_core.fusion import fastest
from medusa_core.reasons import in_one_line
from medusa_core.tree import CandidateTree

__all__ = ["attend_by_length", "attend_faster"]

_log = logging.getLogger(__name__)

# Most rows and nodes of the passes by which it is tried.
_ROWS, _NODES = 500, 12


def attend_by_length(backbone: TransformersBackbone) -> bool:
    """Read committed rows by their number from now on; False, and no change, where that cannot be or gives others.

    The log says why.
    """
    reason = backbone.why_not_by_length
    if reason is None:
        reason = _difference(backbone)
        backbone.has_buckets = reason is not None
    if reason is not None:
        _log.info("attention reads buckets of rows: %s", reason)
    return reason is None


def attend_faster(backbone: TransformersBackbone, seconds: Callable[[], float]) -> None:
    """Read committed rows by their number where that is possible and steps are clearly faster by it.

    seconds: measures a step, in the way that is set at the time.
    """
    by_buckets = seconds()
    if attend_by_length(backbone):
        by_length = seconds()
        backbone.has_buckets = fastest((by_buckets, by_length)) == 0
        chosen = "buckets of rows" if backbone.has_buckets else "as many rows as there are"
        figures = f"{1e3 * by_buckets:.3f} and {1e3 * by_length:.3f} milliseconds of a step"
        _log.info("attention reads %s: by buckets and by length %s", chosen, figures)


@torch.inference_mode()
def _difference(backbone: TransformersBackbone) -> str | None:
    """Compare passes over noise, behind no rows, few and many, with what buckets give; None where they agree.

    Leaves the backbone in either state.
    """
    rows = max(1, min(backbone.positions, _ROWS) - _NODES)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, backbone.vocab_size, (_NODES,), generator=generator).to(backbone.device)
    chain, half = CandidateTree.chain(tokens), _NODES // 2
    ancestors = chain.ancestors.clone()
    ancestors[half:, 1:half] = False
    fork, cache = replace(chain, ancestors=ancestors), backbone.new_cache(rows + _NODES)
    noise = torch.randn(cache.buffer.shape, generator=generator)
    limit = 1e-4 if backbone.dtype == torch.float32 else 0.05
    for committed in (0, min(3, rows), rows):
        past, found = torch.tensor(committed, device=backbone.device), []
        for has_buckets in (True, False):
            backbone.has_buckets = has_buckets
            cache.buffer.copy_(noise)
            try:
                found.append(backbone.forward(fork, past, cache, cache.rows).hidden.float())
            except (AttributeError, NotImplementedError, RuntimeError, TypeError) as reason:
                return f"a trial failed: {in_one_line(reason)}"
        difference = float((found[1] - found[0]).abs().max() / found[0].abs().max())
        if not difference <= limit:  # what is no number is not within it either
            return f"a trial behind {committed} rows parts from buckets by {difference:.1e}"
    return None
