import logging
from typing import Any

import pytest
import torch

from medusa_core.backbone import TransformersBackbone
from tests.cast import tiny_backbone, tiny_model


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("granite", {"residual_multiplier": 0.5}),
        ("granite", {"logits_scaling": 2.0}),
        ("granite", {"embedding_multiplier": 3.0}),
    ],
)
def test_a_model_that_does_more_than_its_parts_show_is_left_alone(
    family: str, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="medusa_core")
    backbone = tiny_backbone(family, **changes)

    backbone.fuse(128, compiled=False)

    assert not backbone.is_fused
    assert "granite runs on its own modelling code: fused, its results differ by" in caplog.text


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gemma2", "a part called pre_feedforward_layernorm"),
        ("gpt_neox", "a part called attention"),
        ("gpt2", "no attribute 'layers'"),
        ("olmo2", "a part called post_feedforward_layernorm"),
    ],
)
def test_a_family_of_another_structure_is_left_alone(
    family: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="medusa_core")
    backbone = tiny_backbone(family)

    backbone.fuse(128, compiled=False)

    assert not backbone.is_fused
    assert f"{family} runs on its own modelling code: " in caplog.text and reason in caplog.text


def test_a_wrong_weight_in_one_layer_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model: Any = tiny_model("llama")
    layer = model.base_model.layers[1]
    # what a family might do behind a name that is known
    layer.post_attention_layernorm.register_forward_hook(lambda module, inputs, output: output * 1.001)
    backbone = TransformersBackbone(model)

    backbone.fuse(128, compiled=False)

    assert not backbone.is_fused


def test_half_precision_is_compared_with_its_own_rounding() -> None:
    backbone = TransformersBackbone(tiny_model("llama").to(torch.bfloat16))

    backbone.fuse(128, compiled=False)

    assert backbone.is_fused
