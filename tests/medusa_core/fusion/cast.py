"""The cast of the fusion tests: torch's kernels around the attention of a model that is not there."""

import torch
from torch import Tensor

from medusa_core.backbone import tree_attention
from medusa_core.fusion.kernels import TorchKernels


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    return tree_attention(torch.nn.Identity(), query, key, value, mask, scaling)[0]


TORCH = TorchKernels(attention)
