"""Keys and values of one sequence: one buffer for all layers, scratch rows for a tree, commit of its accepted path.

Knows nothing of models or tokens' meaning. Rows below the sequence's length hold committed tokens; the rows behind
them are scratch, written by every tree and garbage by definition. The cache remembers which token each committed row
belongs to, so that the next request can reuse what it has in common with the last (see prefix_cache).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from medusa_core.errors import EngineError

__all__ = ["KVCache", "common_prefix"]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading entries two sequences share."""
    if first == second:
        return len(first)
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's view of the buffer, in the form transformers' attention classes write to."""

    is_compileable = True
    is_sliding = False

    def __init__(self, owner: "KVCache", index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner
        self.keys: Tensor = owner.buffer[0, index]
        self.values: Tensor = owner.buffer[1, index]
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do, the buffer exists."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [1, Hkv, T, D] at the owner's write rows; return the visible rows [1, Hkv, S, D]."""
        rows, visible = self.owner.write_rows, self.owner.visible_rows
        self.keys.index_copy_(2, rows, key_states)
        self.values.index_copy_(2, rows, value_states)
        return self.keys[:, :, :visible], self.values[:, :, :visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Visible rows and their offset."""
        return self.owner.visible_rows, 0

    def get_seq_length(self) -> int:
        """Always 0: positions and masks are given explicitly, and a true length would be a device read."""
        return 0

    def get_max_length(self) -> int:
        """Rows of the buffer."""
        return int(self.keys.shape[2])


class KVCache(Cache):
    """Rows for one sequence and the tree under verification, all layers in one buffer.

    buffer:       [2, L, 1, Hkv, S, D], keys then values.
    write_rows:   [T] int64, where the next forward pass writes; T is its number of tokens.
    visible_rows: how many leading rows the next forward pass attends over (the mask decides among them).
    tokens:       the token computed in each committed row, on the host.
    """

    def __init__(
        self, num_layers: int, num_kv_heads: int, head_dim: int, rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.buffer = torch.zeros(2, num_layers, 1, num_kv_heads, rows, head_dim, dtype=dtype, device=device)
        self.write_rows = torch.arange(1, device=device)
        self.visible_rows = rows
        self.tokens: list[int] = []
        super().__init__(layers=[_Layer(self, index) for index in range(num_layers)])

    @property
    def rows(self) -> int:
        """S, committed and scratch rows together."""
        return int(self.buffer.shape[4])

    def prepare(self, past: Tensor, length: int, visible_rows: int) -> None:
        """Say where the next forward pass of `length` tokens writes, and how far it may look.

        past: [] int64, committed rows; the pass writes rows past .. past + length - 1.

        Raises EngineError when the visible rows exceed the buffer: later rows would silently be dropped.
        """
        if visible_rows > self.rows:
            raise EngineError(f"{visible_rows} cache rows are needed, {self.rows} were allocated; raise max_context")
        self.write_rows = past + torch.arange(length, device=past.device)
        self.visible_rows = visible_rows

    def commit(self, past: Tensor, path: Tensor) -> None:
        """Move a path's rows to the front of the scratch rows, for all layers in one gather and one scatter.

        past: [] int64, committed rows before the step.
        path: [P] int64, node indices, root first; entries behind the accepted ones land in rows that are scratch.
        """
        target = past + torch.arange(path.shape[0], device=path.device)
        self.buffer.index_copy_(4, target, self.buffer.index_select(4, past + path))

    @property
    def bytes_per_row(self) -> int:
        """Keys and values of one token in all layers."""
        return self.buffer.nbytes // self.rows

    def copy_rows(self, start: int, end: int) -> Tensor:
        """Rows start .. end - 1 in memory of their own, [2, L, 1, Hkv, T, D]."""
        return self.buffer[..., start:end, :].clone(memory_format=torch.contiguous_format)

    def append(self, tokens: Sequence[int], rows: Tensor) -> None:
        """Commit `tokens` whose rows [2, L, 1, Hkv, T, D] were computed behind the very tokens that are held now."""
        start = len(self.tokens)
        self.buffer[..., start : start + len(tokens), :].copy_(rows)
        self.tokens.extend(tokens)

    def keep(self, length: int) -> None:
        """Forget the committed rows behind the first `length`."""
        del self.tokens[length:]
