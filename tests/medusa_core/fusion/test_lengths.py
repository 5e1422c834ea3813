import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medusa_core.fusion.lengths import (
    PrefixMask,
    attend_by_length,
    dense_with_sums,
    masked_prefix,
    merged,
)

NODES, ROWS, DIM = 6, 40, 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def among() -> Tensor:
    """Two branches under one root."""
    found = torch.ones(NODES, NODES, dtype=torch.bool).tril()
    found[4:, 1:4] = False
    return found


def under_a_mask(query: Tensor, kept: Tensor, past: int, scaling: float) -> Tensor:
    """The same by one attention over all rows."""
    allowed = (torch.arange(ROWS) < past).repeat(NODES, 1)
    allowed[:, past : past + NODES] = among()
    group = query.shape[0] // kept.shape[1]
    keys, values = (part.repeat_interleave(group, dim=0) for part in kept)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=allowed, scale=scaling)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (7, 1)])
@pytest.mark.parametrize("past", [0, 1, 17, ROWS - NODES])
def test_two_parts_merged_are_one_attention_under_a_mask(heads: int, kv_heads: int, past: int) -> None:
    query, kept = noise(heads, NODES, DIM), noise(2, kv_heads, ROWS, DIM, seed=1)
    own = kept[:, :, past : past + NODES]
    mask = PrefixMask(torch.tensor([past], dtype=torch.int32), among())
    found = attend_by_length(query, kept, own, mask, 0.3, masked_prefix)

    torch.testing.assert_close(found, under_a_mask(query, kept, past, 0.3))


def test_rows_behind_the_committed_ones_are_of_no_matter_whatever_they_hold() -> None:
    query, kept = noise(4, NODES, DIM), noise(2, 2, ROWS, DIM, seed=1)
    mask = PrefixMask(torch.tensor([9], dtype=torch.int32), among())
    own = kept[:, :, 9 : 9 + NODES].clone()
    expected = attend_by_length(query, kept, own, mask, 0.3, masked_prefix)
    kept[:, :, 9:] = 1e4

    assert torch.equal(attend_by_length(query, kept, own, mask, 0.3, masked_prefix), expected)


def test_attention_to_nothing_weighs_nothing() -> None:
    query, keys = noise(2, NODES, DIM), noise(2, ROWS, DIM, seed=1)
    output, sums = dense_with_sums(query, keys, keys, torch.zeros(ROWS, dtype=torch.bool), 0.3)
    other = dense_with_sums(query, keys, keys, torch.ones(ROWS, dtype=torch.bool), 0.3)

    assert torch.equal(output, torch.zeros_like(output))
    assert torch.equal(sums, torch.full_like(sums, -torch.inf))
    assert torch.equal(merged((output, sums), other), other[0])
