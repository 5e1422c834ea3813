import pytest
import torch

from medusa_core.checkpoints.layouts import Part
from medusa_core.checkpoints.shapes import shape_of
from medusa_core.config import HeadsConfig
from medusa_core.errors import HeadsMismatch


def stored(heads: int = 2) -> dict[Part, torch.Tensor]:
    found = {Part("block", head, 0, "weight"): torch.zeros(4, 4) for head in range(heads)}
    return found | {Part("low_rank", head, 0, "down"): torch.zeros(2, 4) for head in range(heads)}


def low_rank(heads: int = 2) -> dict[Part, torch.Tensor]:
    return stored(heads) | {Part("low_rank", head, 0, "up"): torch.zeros(9, 2) for head in range(heads)}


def shape(tensors: dict[Part, torch.Tensor], truncated: int | None = None) -> HeadsConfig:
    return shape_of(tensors, truncated, "numbered", {part: repr(part) for part in tensors}, "test")


def test_low_rank_factors_give_rank_and_vocabulary() -> None:
    assert shape(low_rank()) == HeadsConfig(2, 1, 4, 9, True, 2)


def test_half_a_low_rank_pair_is_named() -> None:
    with pytest.raises(HeadsMismatch, match=r"lacks '0\.low_rank\.up'"):
        shape(stored())


def test_rows_must_be_as_many_as_a_token_map_says() -> None:
    with pytest.raises(HeadsMismatch, match=r"shape \[9, 2\], expected \[5, 2\]"):
        shape(low_rank(), truncated=5)


def test_a_bias_without_its_weight_has_no_place() -> None:
    with pytest.raises(HeadsMismatch, match="has no place"):
        shape({**low_rank(), Part("block", 0, 3, "bias"): torch.zeros(4)})
