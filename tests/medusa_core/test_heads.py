import pytest
import torch

from medusa_core.config import HeadsConfig
from medusa_core.errors import HeadsMismatch
from medusa_core.heads import DraftHeads
from tests.cast import random_heads


def base(vocab: int = 40, hidden: int = 16) -> torch.Tensor:
    return torch.randn(vocab, hidden, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_untrained_heads_say_what_the_lm_head_says(shared: bool, layers: int) -> None:
    lm_head, hidden = base(), torch.randn(2, 3, 16)
    heads = DraftHeads.from_base(lm_head, 4, layers, shared).requires_grad_(False)

    logits = heads(hidden)

    assert logits.shape == (4, 2, 3, 40)
    assert torch.allclose(logits, (hidden @ lm_head.T).expand(4, -1, -1, -1), atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_stacked_heads_equal_one_head_computed_by_the_papers_formula(shared: bool) -> None:
    lm_head, row = base(), torch.randn(16)
    heads = random_heads(lm_head, 3, shared=shared)

    for k in range(3):
        state = row + torch.nn.functional.silu(heads.weight[0, k] @ row + heads.bias[0, k])
        projection = heads.lm_head[k] if heads.lm_head is not None else lm_head
        assert torch.allclose(heads(row)[k], projection @ state, atol=1e-5)


def test_blocks_of_one_head_are_independent_parameters() -> None:
    heads = DraftHeads.from_base(base(), 2, num_layers=3)

    assert heads.weight.shape == (3, 2, 16, 16)
    with torch.no_grad():
        heads.weight[0, 0, 0, 0] = 1.0
        assert float(heads.weight[1].abs().sum()) == 0.0


def test_a_shared_lm_head_is_neither_a_parameter_nor_saved_with_the_heads() -> None:
    heads = DraftHeads.from_base(base(), 2)

    assert set(heads.state_dict()) == {"weight", "bias"}
    assert sum(parameter.numel() for parameter in heads.parameters()) == 2 * (16 * 16 + 16)


@pytest.mark.parametrize("shared", [True, False])
def test_int8_lm_heads_rank_nearly_as_the_exact_ones(shared: bool) -> None:
    heads = random_heads(base(200, 64), 3, shared=shared)
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    exact = heads(rows)

    if not heads.quantize_lm_heads():
        pytest.skip("this torch has no product of int8 weights")

    close = heads(rows)
    assert close.shape == exact.shape
    assert float((close - exact).abs().max()) < 0.03 * float(exact.abs().max())
    assert torch.allclose(heads(rows[0]), close[:, 0], atol=0.02 * float(exact.abs().max()))


def test_the_kernel_that_is_chosen_drafts_what_the_heads_say() -> None:
    heads = random_heads(base(200, 64), 3, shared=False)
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    exact = heads(rows)

    heads.choose_lm_head_kernel()

    assert float((heads(rows) - exact).abs().max()) < 0.03 * float(exact.abs().max())


def test_an_lm_head_of_another_shape_is_refused() -> None:
    with pytest.raises(HeadsMismatch, match=r"hidden size 8 and vocabulary 40 .* \[40, 16\]"):
        DraftHeads(HeadsConfig(2, 1, 8, 40, True), base())


def test_shared_heads_without_a_base_say_so_when_used() -> None:
    with pytest.raises(HeadsMismatch, match="made without one"):
        DraftHeads(HeadsConfig(2, 1, 16, 40, True))(torch.zeros(16))
