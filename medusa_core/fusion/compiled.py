"""Passes over trees compiled by torch, for whoever records them once and replays them."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from medusa_core.fusion.kernels import Mask
from medusa_core.fusion.model import Pass
from medusa_core.kv_cache import KVCache
from medusa_core.reasons import in_one_line

__all__ = ["CompiledPass"]

_log = logging.getLogger(__name__)

# Numbers of nodes and of visible rows that are compiled, more than servers meet; torch would refuse to after eight.
_MOST_VARIANTS = 512


class CompiledPass:
    """See Pass: the same, each number of nodes and of visible rows as one compiled graph.

    Prompts stay as they are: their lengths are many. So does everything once a graph cannot be made; the log says why.
    """

    def __init__(self, own: Pass, backend: str | Callable[..., Any], most_variants: int = _MOST_VARIANTS) -> None:
        """`backend` is one of torch.compile's; the graphs that it would record itself are left to the runner.

        most_variants: graphs that are compiled; further numbers of nodes and rows are computed as they were.
        """
        self._own = own
        self._limits = {"recompile_limit": most_variants, "accumulated_recompile_limit": most_variants}

        def compute(
            tokens: Tensor, positions: Tensor, masks: Mapping[str, Mask], cache: KVCache, keep: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            return own(tokens, positions, masks, cache, keep)

        self._compiled: Pass | None = torch.compile(compute, backend=backend, fullgraph=True, dynamic=False)

    @property
    def is_compiled(self) -> bool:
        """Whether passes over trees are, or will be."""
        return self._compiled is not None

    def __call__(
        self, tokens: Tensor, positions: Tensor, masks: Mapping[str, Mask], cache: KVCache, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See Pass: [N] tokens and positions; hidden [N, H] and logits [N, V] or [R, V]."""
        # whoever looks at every single operation would see none of a compiled graph
        if self._compiled is None or keep is not None or torch._C._len_torch_dispatch_stack() > 0:
            return self._own(tokens, positions, masks, cache, keep)
        try:
            with torch._dynamo.config.patch(self._limits):
                return self._compiled(tokens, positions, masks, cache, None)
        except torch.OutOfMemoryError:
            raise
        except torch._dynamo.exc.FailOnRecompileLimitHit:  # is no RuntimeError; torch's own log tells of it
            return self._own(tokens, positions, masks, cache, None)
        except (ImportError, OSError, RuntimeError) as reason:
            self._compiled = None
            _log.warning("steps are not compiled: %s", in_one_line(reason))
        # what was written so far lies in scratch rows, and is written again
        return self._own(tokens, positions, masks, cache, None)
