import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medusa_core.config import HeadsConfig
from medusa_core.errors import ConfigurationError, HeadsMismatch
from medusa_core.heads import DraftHeads, TorchInt8
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


@pytest.mark.parametrize("fastest", ["as loaded", "from elsewhere", "torch's"])
def test_the_fastest_of_three_kernels_is_kept(fastest: str) -> None:
    made = {name: random_heads(base(200, 64), 3, shared=False) for name in ("as loaded", "from elsewhere", "torch's")}
    if not made["torch's"].quantize_lm_heads():
        pytest.skip("this torch has no product of int8 weights")
    made["from elsewhere"].quantize_lm_heads(lambda weight, scales: lambda rows: torch.ones(len(rows), len(weight)))
    row = torch.randn(64, generator=torch.Generator().manual_seed(2))
    heads, tried = random_heads(base(200, 64), 3, shared=False), iter(made)

    heads.choose_lm_head_kernel(
        lambda weight, scales: lambda rows: torch.ones(len(rows), len(weight)),
        lambda measured, zeros: 1.0 if next(tried) == fastest else 2.0,
    )

    assert torch.equal(heads(row), made[fastest](row))


def test_int8_lm_heads_whose_product_does_not_run_here_leave_the_heads_as_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def failing(weight: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor]:
        def product(rows: Tensor) -> Tensor:
            raise NotImplementedError("no kernel for this device")

        return product

    caplog.set_level(logging.INFO, "medusa_core")
    heads = random_heads(base(200, 64), 3, shared=False)
    row = torch.randn(64, generator=torch.Generator().manual_seed(2))
    exact = heads(row)

    assert not heads.quantize_lm_heads(failing)
    assert torch.equal(heads(row), exact)
    assert "no kernel for this device" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_int8_lm_heads_in_the_dtype_of_either_device_agree_on_the_best_candidates(dtype: torch.dtype) -> None:
    weight = torch.randn(400, 64, generator=torch.Generator().manual_seed(1))
    rows = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    scales = weight.abs().amax(dim=1) / 127
    rounded = (weight / scales[:, None]).round().to(torch.int8)
    found = TorchInt8(rounded, scales.to(dtype))(rows).float().topk(8).indices
    reference = (rows @ (rounded.float() * scales[:, None]).T).topk(8).indices
    exact = (rows @ weight.T).topk(8).indices

    def shared(one: Tensor, other: Tensor) -> float:
        return float((one[:, :, None] == other[:, None]).any(dim=2).float().mean())

    assert shared(found, reference) >= (0.99 if dtype == torch.float32 else 0.95)
    assert shared(found, exact) >= 0.9
    assert float((found[:, 0] == exact[:, 0]).float().mean()) >= 0.9


def test_an_lm_head_of_another_shape_is_refused() -> None:
    with pytest.raises(HeadsMismatch, match=r"hidden size 8 and vocabulary 40 .* \[40, 16\]"):
        DraftHeads(HeadsConfig(2, 1, 8, 40, True), base())


def test_shared_heads_without_a_base_say_so_when_used() -> None:
    with pytest.raises(HeadsMismatch, match="made without one"):
        DraftHeads(HeadsConfig(2, 1, 16, 40, True))(torch.zeros(16))


def test_untrained_low_rank_heads_say_what_the_lm_head_says_and_can_learn() -> None:
    lm_head, hidden = base(), torch.randn(5, 16)
    heads = DraftHeads.from_base(lm_head, 3, lm_head_rank=2)

    logits = heads(hidden)
    logits.square().sum().backward()

    assert torch.allclose(logits, (hidden @ lm_head.T).expand(3, -1, -1), atol=1e-5)
    assert heads.up is not None and heads.up.grad is not None
    assert heads.up.shape == (3, 40, 2) and bool(heads.up.grad.any())


def test_low_rank_factors_follow_the_generators_seed() -> None:
    def factors(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        down = DraftHeads.from_base(base(), 3, lm_head_rank=2).down
        assert down is not None
        return down

    assert torch.equal(factors(5), factors(5))
    assert not torch.equal(factors(5), factors(6))


def low_rank_heads() -> DraftHeads:
    heads = DraftHeads.from_base(base(200, 64), 3, lm_head_rank=4).requires_grad_(False)
    assert heads.up is not None
    heads.up.copy_(torch.randn(heads.up.shape, generator=torch.Generator().manual_seed(4)))
    return heads


def test_a_low_rank_head_equals_the_whole_lm_head_it_stands_for() -> None:
    heads, row = low_rank_heads(), torch.randn(64, generator=torch.Generator().manual_seed(2))

    for k in range(3):
        assert torch.allclose(heads(row)[k], heads.lm_head_of(k) @ heads.residual(row)[k], atol=1e-4)
    assert not torch.allclose(heads.lm_head_of(0), heads.lm_head_of(1))


def test_the_shared_part_of_low_rank_heads_may_be_int8() -> None:
    heads, row = low_rank_heads(), torch.randn(64, generator=torch.Generator().manual_seed(2))
    exact = heads(row)

    if not heads.quantize_lm_heads():
        pytest.skip("this torch has no product of int8 weights")

    assert float((heads(row) - exact).abs().max()) < 0.03 * float(exact.abs().max())


def test_low_rank_without_the_shared_lm_head_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="corrects the shared one"):
        DraftHeads.from_base(base(), 2, shared_lm_head=False, lm_head_rank=2)


@pytest.mark.parametrize("shared", [True, False])
def test_a_truncated_vocabulary_scores_the_listed_tokens_and_no_others(shared: bool) -> None:
    ids = torch.tensor([3, 17, 39, 4])
    heads = DraftHeads.from_base(base(), 2, shared_lm_head=shared, token_ids=ids).requires_grad_(False)
    row = torch.randn(16, generator=torch.Generator().manual_seed(2))

    assert torch.allclose(heads(row)[0], (base() @ row)[ids], atol=1e-5)
    assert heads.as_tokens(torch.tensor([[2, 0]])).tolist() == [[39, 3]]
    assert heads.of_tokens(torch.arange(40)).tolist() == ids.tolist()
    assert set(heads.state_dict()) == {"weight", "bias", "token_ids"} | (set() if shared else {"lm_head"})


def test_heads_that_know_fewer_tokens_than_the_model_know_the_first_ones() -> None:
    heads = DraftHeads.from_base(base(38), 2)

    assert heads.of_tokens(torch.arange(40)).tolist() == list(range(38))
    assert heads.as_tokens(torch.tensor([37])).tolist() == [37]


def test_token_ids_of_another_length_than_the_lm_heads_are_refused() -> None:
    with pytest.raises(HeadsMismatch, match=r"draft from 40 tokens need as many ids, got \[3\]"):
        DraftHeads(HeadsConfig(2, 1, 16, 40, True), base(), torch.arange(3))


def test_one_lm_head_of_their_own_serves_all_heads() -> None:
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    one = DraftHeads(HeadsConfig(3, 1, 16, 40, False, one_lm_head=True), base()).requires_grad_(False)

    assert one.lm_head is not None and one.lm_head.shape == (1, 40, 16)
    assert torch.allclose(one(rows), (rows @ base().T).expand(3, -1, -1), atol=1e-5)
    if one.quantize_lm_heads():
        assert one(rows).shape == (3, 5, 40)


@pytest.mark.parametrize("kind", ["shared", "own", "low rank", "truncated"])
def test_heads_that_draft_fewer_tokens_say_the_same_of_those(kind: str) -> None:
    whole = random_heads(base(), 3, shared=kind != "own")
    if kind == "low rank":
        whole = DraftHeads.from_base(base(), 3, lm_head_rank=4).requires_grad_(False)
        assert whole.up is not None
        whole.up.normal_(generator=torch.Generator().manual_seed(3))
    if kind == "truncated":
        whole = DraftHeads.from_base(base(), 3, token_ids=torch.arange(5, 35)).requires_grad_(False)
    tokens, row = torch.tensor([7, 30, 11, 6]), torch.randn(16)

    cut = whole.drafting_only(tokens)

    every = torch.full((3, 40), torch.nan)
    every[:, whole.as_tokens(torch.arange(whole.config.vocab_size))] = whole(row)
    assert cut.config.vocab_size == 4
    assert sorted(cut.as_tokens(torch.arange(4)).tolist()) == [6, 7, 11, 30]
    assert torch.allclose(cut(row), every[:, cut.as_tokens(torch.arange(4))], atol=1e-5)


def test_heads_with_fewer_rows_than_the_model_has_tokens_draft_those_they_know() -> None:
    heads = DraftHeads.from_base(base()[:30], 3, shared_lm_head=False)

    assert heads.drafting_only(torch.tensor([4, 29, 30, 39])).as_tokens(torch.arange(2)).tolist() == [4, 29]
    with pytest.raises(HeadsMismatch, match="none of the 2 tokens"):
        heads.drafting_only(torch.tensor([30, 39]))


@pytest.mark.parametrize("layers", [1, 2])
def test_first_blocks_that_are_joined_say_the_same(layers: int) -> None:
    heads = DraftHeads.from_base(base(), 3, layers)
    with torch.no_grad():
        for parameter in (heads.weight, heads.bias):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) / 4)
    rows = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    expected, alone = heads.residual(rows), heads.residual(rows[0, 0])

    heads.join_blocks(lambda weight: lambda rows, added: rows @ weight.T + added)

    assert torch.allclose(heads.residual(rows), expected, atol=1e-5)
    assert torch.allclose(heads.residual(rows[0, 0]), alone, atol=1e-5)


def test_int8_products_may_come_from_elsewhere() -> None:
    heads = random_heads(base(200, 64), 3, shared=False)
    row = torch.randn(64, generator=torch.Generator().manual_seed(2))
    exact = heads(row)

    assert heads.quantize_lm_heads(lambda weight, scales: lambda rows: rows @ (weight * scales[:, None]).T)

    assert float((heads(row) - exact).abs().max()) < 0.03 * float(exact.abs().max())
