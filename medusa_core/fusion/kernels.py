"""The few operations a fused pass is made of, as torch computes them on every device and in every dtype."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Kernels", "TorchKernels"]


class Kernels(Protocol):
    """What a fused pass asks for; rows are matrices whose last dimension is contiguous."""

    def suited(self, weight: Tensor) -> "Kernels":
        """Those whose products with a weight [out, in] are fastest here: these, or simpler ones."""
        ...

    def product(self, rows: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
        """Rows [N, in] by weight [out, in], plus what is added, [N, out] or [out]: [N, out]."""
        ...

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Rows [N, H] scaled to unit mean square, times weight [H]: [N, H]."""
        ...

    def turn(self, heads: Tensor, num_turned: int, factors: Tensor) -> None:
        """Turn the first heads of [N, heads, D] to their positions, in place.

        factors: [N, 2, D'], what rotary positions multiply the first D' numbers of a head with: cosines, and sines with
                 their sign.
        """
        ...


class TorchKernels:
    """See Kernels."""

    def suited(self, weight: Tensor) -> Kernels:
        """See Kernels: for every weight [out, in] the same."""
        return self

    def product(self, rows: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
        """See Kernels: [N, in], [out, in] and [N, out] or [out] to [N, out]."""
        return F.linear(rows, weight) if added is None else torch.addmm(added, rows, weight.t())

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Kernels: [N, H] to [N, H]."""
        return F.rms_norm(rows, weight.shape, weight, eps)

    def turn(self, heads: Tensor, num_turned: int, factors: Tensor) -> None:
        """See Kernels: [N, heads, D] by [N, 2, D']."""
        turned = heads[:, :num_turned, : factors.shape[-1]]
        swapped = turned.roll(factors.shape[-1] // 2, dims=-1)
        turned.mul_(factors[:, :1]).addcmul_(swapped, factors[:, 1:])
