"""The few operations a fused pass is made of, as torch computes them on every device and in every dtype."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from medusa_core.fusion.lengths import AttendPrefix, PrefixMask, attend_by_length, flash_prefix, masked_prefix

__all__ = ["AttentionFunction", "Kernels", "Mask", "Multiply", "TorchKernels"]

# Queries [1, Hq, N, D], keys and values [1, Hkv, S, D], a mask [1, 1, g * N, S] and the scaling, to [1, N, Hq, D].
AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]

# What is added to the scores of all visible rows, [1, 1, g * N, S], or how many rows there are.
Mask = Tensor | PrefixMask


class Multiply(Protocol):
    """The product with one weight."""

    def __call__(self, rows: Tensor, added: Tensor | None) -> Tensor:
        """Rows [N, in] by the weight [out, in], plus what is added, [N, out] or [out]: [N, out]."""
        ...


class Kernels(Protocol):
    """What a fused pass asks for; rows are matrices whose last dimension is contiguous.

    label: whose they are; seconds taken with others are not comparable.
    """

    label: str

    def multiply_by(self, weight: Tensor) -> Multiply:
        """The fastest product with a weight [out, in]."""
        ...

    def multiply_by_int8(self, weight: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Rows [N, in] by a weight [out, in] int8 with scales [out], roughly: [N, out]; None has no such product."""
        ...

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Rows [N, H] scaled to unit mean square, times weight [H]: [N, H]."""
        ...

    def gate_silu(self, rows: Tensor) -> Tensor:
        """The second half of rows [N, 2 * I] times the SiLU of the first: [N, I]."""
        ...

    def turn(self, heads: Tensor, num_turned: int, factors: Tensor) -> None:
        """Turn the first heads of [N, heads, D] to their positions, in place.

        factors: [N, 2, D'], what rotary positions multiply the first D' numbers of a head with: cosines, and sines with
                 their sign.
        """
        ...

    def attend(self, heads: Tensor, kept: Tensor, places: Tensor, mask: Mask, scaling: float) -> Tensor:
        """Write keys and values where they are kept, and let the queries attend to rows there, as the mask says.

        heads:  [N, Hq + 2 * Hkv, D], queries, keys and values.
        kept:   [2, Hkv, rows, D], keys and values of one layer; places: [N] int64, the rows to write.
        mask:   [1, 1, g * N, S], added to the scores of the first S rows, g = Hq / Hkv; or a PrefixMask.

        Returns [N, Hq * D].
        """
        ...


@dataclass(frozen=True)
class _TorchMultiply:
    weight: Tensor
    columns: Tensor

    def __call__(self, rows: Tensor, added: Tensor | None) -> Tensor:
        return F.linear(rows, self.weight) if added is None else torch.addmm(added, rows, self.columns)


class TorchKernels:
    """See Kernels."""

    label = "torch's"

    def __init__(self, attention: AttentionFunction) -> None:
        self._attention = attention

    def multiply_by(self, weight: Tensor) -> Multiply:
        """See Kernels: weight [out, in]."""
        return _TorchMultiply(weight, weight.t())

    def multiply_by_int8(self, weight: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor] | None:
        """See Kernels: weight [out, in] and scales [out]; the heads know torch's own way."""
        return None

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Kernels: [N, H] to [N, H]."""
        return F.rms_norm(rows, weight.shape, weight, eps)

    def gate_silu(self, rows: Tensor) -> Tensor:
        """See Kernels: [N, 2 * I] to [N, I]."""
        gate, up = rows.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def turn(self, heads: Tensor, num_turned: int, factors: Tensor) -> None:
        """See Kernels: [N, heads, D] by [N, 2, D']."""
        turned = heads[:, :num_turned, : factors.shape[-1]]
        swapped = turned.roll(factors.shape[-1] // 2, dims=-1)
        turned.mul_(factors[:, :1]).addcmul_(swapped, factors[:, 1:])

    def attend(self, heads: Tensor, kept: Tensor, places: Tensor, mask: Mask, scaling: float) -> Tensor:
        """See Kernels: [N, Hq + 2 * Hkv, D] to [N, Hq * D]."""
        num_rows, num_heads, dim = heads.shape
        num_kv_heads = kept.shape[1]
        num_queries = num_heads - 2 * num_kv_heads
        states = heads[:, num_queries:].view(num_rows, 2, num_kv_heads, dim)
        own = states.permute(1, 2, 0, 3)
        kept.index_copy_(2, places, own)
        if isinstance(mask, PrefixMask):
            attend_prefix: AttendPrefix = flash_prefix if heads.device.type == "cuda" else masked_prefix
            mixed = attend_by_length(heads[:, :num_queries].transpose(0, 1), kept, own, mask, scaling, attend_prefix)
            return mixed.transpose(0, 1).reshape(num_rows, num_queries * dim)
        keys, values = kept[:, None, :, : mask.shape[-1]]
        query = heads[:, :num_queries].transpose(0, 1)[None]
        return self._attention(query, keys, values, mask, scaling).view(num_rows, num_queries * dim)
