import logging
import math
from typing import Any

import pytest
import torch

from medusa_core.backbone import TransformersBackbone
from medusa_core.fusion.kernels import Multiply, TorchKernels
from medusa_core.fusion.trial import Trial, fuse
from tests.cast import tiny_backbone, tiny_model
from tests.medusa_core.fusion.cast import TORCH, attention


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


def test_logits_that_are_no_numbers_are_noticed_beside_hidden_states_that_are() -> None:
    class Broken(TorchKernels):
        def multiply_by(self, weight: torch.Tensor) -> Multiply:
            right = super().multiply_by(weight)
            is_lm_head = len(weight) == backbone.vocab_size
            return lambda rows, added: right(rows, added) * (math.nan if is_lm_head else 1.0)

    backbone = tiny_backbone("llama")
    own: Any = backbone._own_pass

    def additive(allowed: torch.Tensor) -> torch.Tensor:
        return torch.zeros(allowed.shape).masked_fill(~allowed, -1e30).repeat(2, 1)[None, None]

    trial = Trial(own, backbone.new_cache, additive, backbone.vocab_size)

    assert fuse(backbone.model, ["full_attention"], 128, Broken(attention), trial) == own
    assert fuse(backbone.model, ["full_attention"], 128, TORCH, trial) != own


def test_a_model_that_differs_behind_many_positions_only_is_left_alone() -> None:
    for start, is_fused in ((126, False), (200, True)):
        rope = {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": start,
            "llama_4_scaling_beta": 1.0,  # queries grow where positions reach the original ones
        }
        backbone = tiny_backbone("ministral3", rope_parameters=rope)

        backbone.fuse(128, compiled=False)

        assert backbone.is_fused == is_fused


def test_half_precision_is_compared_with_its_own_rounding() -> None:
    backbone = TransformersBackbone(tiny_model("llama").to(torch.bfloat16))

    backbone.fuse(128, compiled=False)

    assert backbone.is_fused
