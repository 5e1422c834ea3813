"""Attention that learns on the device how many rows there are: the committed ones by length, the tree's own densely.

Both parts come with the log of their sum of exponentials, by which they are merged: there are no buckets, so one
recording serves every length, and no row is read in vain. Where the committed rows are read by a mask instead, on a
CPU, the results are the same and nothing is saved; that is what the tests run.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "AttendPrefix",
    "PrefixMask",
    "attend_by_length",
    "dense_with_sums",
    "flash_prefix",
    "masked_prefix",
    "merged",
]


@dataclass(frozen=True)
class PrefixMask:
    """What the nodes of a tree see: all committed rows, and of each other what is marked.

    length: [1] int32, committed rows.
    among:  [N, N] bool, ancestors and the node itself.
    """

    length: Tensor
    among: Tensor


# Queries [Hq, N, D], keys and values [Hkv, S, D], how many rows of them count [1] int32, and the scaling, to what
# attention to those gives [Hq, N, D] and the log-sum-exps of the scores [Hq, N] float32, -inf where no row counts.
AttendPrefix = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def attend_by_length(
    query: Tensor, kept: Tensor, own: Tensor, mask: PrefixMask, scaling: float, attend_prefix: AttendPrefix
) -> Tensor:
    """Attention of a tree's nodes to the committed rows and to each other.

    query: [Hq, N, D]; kept: [2, Hkv, S, D], keys and values of all rows; own: [2, Hkv, N, D], those of the tree.

    Returns [Hq, N, D].
    """
    prefix = attend_prefix(query, kept[0], kept[1], mask.length, scaling)
    return merged(prefix, dense_with_sums(query, own[0], own[1], mask.among, scaling))


def masked_prefix(query: Tensor, keys: Tensor, values: Tensor, length: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """See AttendPrefix: on any device and in any dtype, reading every row. Query [Hq, N, D], keys [Hkv, S, D]."""
    rows = torch.arange(keys.shape[1], device=keys.device)
    return dense_with_sums(query, keys, values, rows < length, scaling)


def flash_prefix(query: Tensor, keys: Tensor, values: Tensor, length: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """See AttendPrefix: by the flash kernel for sequences of different lengths, CUDA and 16 bits only.

    Query [Hq, N, D], keys [Hkv, S, D], which need not be contiguous but in their last dimension.
    """
    num_nodes, num_rows = query.shape[1], keys.shape[1]
    ends, rows = (torch.arange(2, dtype=torch.int32, device=query.device) * count for count in (num_nodes, num_rows))
    output, sums, *_ = torch.ops.aten._flash_attention_forward(
        query.transpose(0, 1).contiguous(),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        ends,
        rows,
        num_nodes,
        num_rows,
        0.0,  # dropout
        False,  # causal
        False,  # debug mask
        scale=scaling,
        seqused_k=length,
    )
    # of no rows the kernel says infinity, whose share would be everything
    has_rows = length > 0
    return output.transpose(0, 1).where(has_rows, 0.0), sums.view(query.shape[:2]).where(has_rows, -torch.inf)


def dense_with_sums(
    query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exps of its scores.

    query: [Hq, N, D]; keys, values: [Hkv, M, D]; allowed: [N, M] or [M] bool.

    Returns [Hq, N, D] and [Hq, N] float32; zeros and -inf where nothing is allowed.
    """
    grouped = query.reshape(keys.shape[0], -1, *query.shape[1:])  # [Hkv, g, N, D]
    scores = (grouped @ keys[:, None].transpose(2, 3)).float() * scaling
    scores = scores.masked_fill(~allowed, -torch.inf)
    sums = scores.logsumexp(dim=-1)
    # minus infinity from itself would be no number
    weights = (scores - sums.clamp(min=torch.finfo(torch.float32).min)[..., None]).exp()
    output = weights.to(values.dtype) @ values[:, None]
    return output.reshape(query.shape), sums.reshape(query.shape[:2])


def merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """What attention over two sets of rows together gives, from the two and their log-sum-exps.

    Each is [Hq, N, D] and [Hq, N] float32, not both -inf; returns [Hq, N, D].
    """
    shares = torch.stack([one[1], other[1]]).softmax(dim=0)[..., None]
    return (one[0].float() * shares[0] + other[0].float() * shares[1]).to(one[0].dtype)
