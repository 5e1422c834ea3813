import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from medusa_core.fusion.kernels import TorchKernels

KERNELS = TorchKernels()
GENERATOR = torch.Generator().manual_seed(0)


def test_products_add_what_they_are_given() -> None:
    rows, weight = torch.randn(3, 8, generator=GENERATOR), torch.randn(5, 8, generator=GENERATOR)
    for added in (torch.randn(3, 5, generator=GENERATOR), torch.randn(5, generator=GENERATOR)):
        assert torch.allclose(KERNELS.product(rows, weight, added), rows @ weight.T + added, atol=1e-6)
    assert torch.allclose(KERNELS.product(rows, weight, None), rows @ weight.T, atol=1e-6)
    assert KERNELS.suited(weight) is KERNELS


def test_norms_equal_those_of_modelling_code() -> None:
    norm = LlamaRMSNorm(16, 1e-3)
    weight, rows = torch.rand(16, generator=GENERATOR), torch.randn(3, 16, generator=GENERATOR)
    norm.weight.data = weight

    assert torch.allclose(KERNELS.rms_norm(rows, weight, 1e-3), norm(rows), atol=1e-6)


def test_heads_are_turned_as_modelling_code_turns_them_and_values_are_not() -> None:
    heads = torch.randn(3, 6, 8, generator=GENERATOR)
    angles = torch.rand(3, 4, generator=GENERATOR).repeat(1, 2)
    cosine, sine = angles.cos(), angles.sin()
    signed = torch.cat([-sine[:, :4], sine[:, 4:]], dim=1)
    query, key = apply_rotary_pos_emb(heads[None, :, :4], heads[None, :, 4:5], cosine[None], sine[None], 2)
    expected = torch.cat([query[0], key[0], heads[:, 5:]], dim=1)

    KERNELS.turn(heads, 5, torch.stack([cosine, signed], dim=1))

    assert torch.allclose(heads, expected, atol=1e-6)
