from typing import Any

import pytest
import torch

from medusa_core.fusion.layers import GatedMlp, HeadNorm, RmsNorm, read_layer, read_norm
from tests.cast import tiny_model
from tests.medusa_core.fusion.cast import TORCH

ROWS = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))


def first_layer(family: str, **changes: Any) -> tuple[Any, Any]:
    model: Any = tiny_model(family, **changes)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model.base_model.layers[0], model.config


def test_a_common_norm_becomes_one_call_that_gives_the_same() -> None:
    layer, _ = first_layer("llama")
    norm = read_norm(layer.input_layernorm, TORCH)

    assert isinstance(norm, RmsNorm)
    assert torch.allclose(norm(ROWS), layer.input_layernorm(ROWS), atol=1e-6)


def test_another_norm_is_called_as_it_is() -> None:
    for family in ("gemma", "starcoder2"):
        layer, _ = first_layer(family)

        assert read_norm(layer.input_layernorm, TORCH) is layer.input_layernorm


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma"])
def test_a_gated_mlp_gives_the_same(family: str) -> None:
    layer, config = first_layer(family)
    expected = ROWS + layer.mlp(ROWS)
    fused = read_layer(layer, config, TORCH)

    assert isinstance(fused.mlp, GatedMlp)
    assert torch.allclose(fused.mlp.add_to(ROWS, ROWS), expected, atol=1e-5)


def test_an_mlp_of_another_form_is_called_as_it_is() -> None:
    layer, config = first_layer("starcoder2")
    fused = read_layer(layer, config, TORCH)

    assert torch.allclose(fused.mlp.add_to(ROWS, ROWS), ROWS + layer.mlp(ROWS), atol=1e-5)


def test_queries_and_keys_are_normalised_each_with_its_own_weight() -> None:
    layer, config = first_layer("qwen3", head_dim=8)
    norm = read_layer(layer, config, TORCH).attention.head_norm
    heads = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))

    assert isinstance(norm, HeadNorm)
    expected = torch.cat([layer.self_attn.q_norm(heads[:, :4]), layer.self_attn.k_norm(heads[:, 4:])], dim=1)
    assert torch.allclose(norm(heads), expected, atol=1e-6)


def test_a_layer_with_parts_that_nobody_expects_is_refused_by_their_name() -> None:
    with pytest.raises(ValueError, match="a part called pre_feedforward_layernorm"):
        read_layer(*first_layer("gemma2", head_dim=8), TORCH)
    with pytest.raises(AttributeError, match="post_attention_layernorm"):
        read_layer(*first_layer("cohere"), TORCH)
