import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from tests.medusa_core.fusion.cast import TORCH

GENERATOR = torch.Generator().manual_seed(0)


def test_products_add_what_they_are_given() -> None:
    rows, weight = torch.randn(3, 8, generator=GENERATOR), torch.randn(5, 8, generator=GENERATOR)
    for added in (torch.randn(3, 5, generator=GENERATOR), torch.randn(5, generator=GENERATOR)):
        assert torch.allclose(TORCH.multiply_by(weight)(rows, added), rows @ weight.T + added, atol=1e-6)
    assert torch.allclose(TORCH.multiply_by(weight)(rows, None), rows @ weight.T, atol=1e-6)


def test_norms_equal_those_of_modelling_code() -> None:
    norm = LlamaRMSNorm(16, 1e-3)
    weight, rows = torch.rand(16, generator=GENERATOR), torch.randn(3, 16, generator=GENERATOR)
    norm.weight.data = weight

    assert torch.allclose(TORCH.rms_norm(rows, weight, 1e-3), norm(rows), atol=1e-6)


def test_heads_are_turned_as_modelling_code_turns_them_and_values_are_not() -> None:
    heads = torch.randn(3, 6, 8, generator=GENERATOR)
    angles = torch.rand(3, 4, generator=GENERATOR).repeat(1, 2)
    cosine, sine = angles.cos(), angles.sin()
    signed = torch.cat([-sine[:, :4], sine[:, 4:]], dim=1)
    query, key = apply_rotary_pos_emb(heads[None, :, :4], heads[None, :, 4:5], cosine[None], sine[None], 2)
    expected = torch.cat([query[0], key[0], heads[:, 5:]], dim=1)

    TORCH.turn(heads, 5, torch.stack([cosine, signed], dim=1))

    assert torch.allclose(heads, expected, atol=1e-6)


def test_attention_writes_keys_and_values_first_and_sees_what_the_mask_shows() -> None:
    heads, kept = torch.randn(2, 8, 4, generator=GENERATOR), torch.randn(2, 2, 9, 4, generator=GENERATOR)
    places, before = torch.tensor([5, 6]), kept.clone()
    allowed = torch.rand(2, 7, generator=GENERATOR) < 0.5
    allowed[:, 5:] = torch.eye(2, dtype=torch.bool)
    mask = torch.zeros(2, 7).masked_fill(~allowed, torch.finfo(torch.float32).min).repeat(2, 1)[None, None]

    mixed = TORCH.attend(heads, kept, places, mask, 0.3)

    assert torch.equal(kept[0, :, 5:7].transpose(0, 1), heads[:, 4:6])
    assert torch.equal(kept[1, :, 5:7].transpose(0, 1), heads[:, 6:])
    assert torch.equal(kept[:, :, [0, 4, 7, 8]], before[:, :, [0, 4, 7, 8]])
    for row in range(2):
        for head in range(4):
            keys, values = kept[:, head // 2, :7][:, allowed[row]]
            expected = (keys @ heads[row, head] * 0.3).softmax(0) @ values
            assert torch.allclose(mixed[row, 4 * head : 4 * head + 4], expected, atol=1e-6)


def test_gates_come_first_and_open_what_stands_behind_them() -> None:
    rows = torch.randn(3, 10, generator=GENERATOR)

    assert torch.allclose(TORCH.gate_silu(rows), F.silu(rows[:, :5]) * rows[:, 5:])
