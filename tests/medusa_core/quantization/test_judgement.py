from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medusa_core.errors import ConfigurationError
from medusa_core.loading import load_backbone
from medusa_core.quantization.judgement import (
    Judgement,
    default_nodes,
    dense_weight,
    judge,
    judge_model,
    rows_are_independent,
)
from tests.cast import CPU, make_engine, run, tiny_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]

# PyTorch's own marks of what its next version does otherwise, made while torchao is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def torchao(kind: str, **data: Any) -> dict[str, Any]:
    return {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": f"{kind}Config", "_version": 2, "_data": data}},
    }


def granularity(name: str) -> dict[str, Any]:
    return {"_type": name, "_version": 1, "_data": {}}


def compressed(bits: int, inputs: dict[str, Any] | None) -> dict[str, Any]:
    group = {"weights": {"num_bits": bits, "strategy": "channel"}, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


# As they stand in config.json of checkpoints; nodes that pay, and whether a tree can be verified at all.
STORED: dict[str, tuple[dict[str, Any], int, bool]] = {
    "torchao int8": (torchao("Int8WeightOnly"), 64, True),
    "torchao int4": (torchao("Int4WeightOnly", group_size=128), 32, True),
    "torchao fp8 by row": (
        torchao("Float8DynamicActivationFloat8Weight", granularity=[granularity("PerRow"), granularity("PerRow")]),
        64,
        True,
    ),
    "torchao fp8 by tensor": (
        torchao("Float8DynamicActivationFloat8Weight", granularity=[granularity("PerTensor")] * 2),
        1,
        False,
    ),
    "torchao fp8 of unknown granularity": (torchao("Float8DynamicActivationFloat8Weight"), 1, False),
    "torchao int8 by tensor": (
        torchao("Int8DynamicActivationInt8Weight", granularity=granularity("PerTensor")),
        1,
        False,
    ),
    "torchao int8 by row": (torchao("Int8DynamicActivationInt8Weight", granularity=granularity("PerRow")), 64, True),
    "torchao, by layer": (
        torchao("FqnToConfig", fqn_to_config={"_default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}),
        32,
        True,
    ),
    "torchao, static scale": (
        torchao("Float8StaticActivationFloat8Weight", granularity=granularity("PerTensor")),
        64,
        True,
    ),
    "compressed int4": (compressed(4, None), 64, True),
    "compressed fp8 by token": (compressed(8, {"dynamic": True, "strategy": "token"}), 64, True),
    "compressed fp8, static scale": (compressed(8, {"dynamic": False, "strategy": "tensor"}), 64, True),
    "compressed fp8 by tensor": (compressed(8, {"dynamic": True, "strategy": "tensor"}), 1, False),
    "bitsandbytes 4-bit": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 1, True),
    "bitsandbytes 8-bit": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1, False),
    "bitsandbytes 8-bit without outliers": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 0.0},
        1,
        True,
    ),
    "GPTQ": ({"quant_method": "gptq", "bits": 4}, 32, True),
    "AWQ": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, 32, True),
    "fp8 in blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 64, True),
    "unheard of": ({"quant_method": "abacus"}, 16, True),
}


@pytest.mark.parametrize("kind", STORED)
def test_a_checkpoints_own_words_tell_whether_trees_pay(kind: str) -> None:
    facts, most_nodes, is_row_independent = STORED[kind]

    found = judge(facts)

    assert (found.most_nodes, found.is_row_independent) == (most_nodes, is_row_independent)
    assert found.label != "" and found.advice != ""


INDEPENDENT, DEPENDENT = Judgement("int4", 32, True, "small"), Judgement("8-bit", 1, False, "outliers")


@pytest.mark.parametrize(("weights", "expected"), [(None, 48), (INDEPENDENT, 32), (DEPENDENT, 1)])
def test_the_default_tree_shrinks_to_what_pays(weights: Judgement | None, expected: int) -> None:
    assert default_nodes(48, weights) == expected
    assert default_nodes(1, weights) == 1


def test_the_start_says_whether_trees_pay() -> None:
    assert "trees pay up to 32 nodes; small" in INDEPENDENT.statement
    assert "trees do not pay, one node is used; outliers" in DEPENDENT.statement


@pytest.mark.parametrize("by_row", [True, False])
def test_a_trial_tells_whether_rows_share_a_scale(tmp_path: Path, by_row: bool) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, PerRow, PerTensor, quantize_

    model = tiny_model("llama")
    quantize_(model, Int8DynamicActivationInt8WeightConfig(granularity=PerRow() if by_row else PerTensor()))

    assert rows_are_independent(model) == by_row


def test_a_trial_overrules_what_is_thought_of_a_method() -> None:
    class OneScaleForAll(nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            scale = rows.abs().max() / 127
            return super().forward((rows / scale).round() * scale)

    model = tiny_model("llama")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert judge_model(model) == judge(model.config.quantization_config)

    model.model.layers[0].self_attn.q_proj = OneScaleForAll(32, 32, bias=False)
    with pytest.raises(ConfigurationError, match=r"with GPTQ weights .*drafts and cached.*a trial of its first layer"):
        judge_model(model)


def test_weights_whose_rows_share_a_scale_are_refused_by_what_the_checkpoint_says(tmp_path: Path) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, PerTensor
    from transformers import AutoModelForCausalLM, TorchAoConfig

    tiny_model("llama").save_pretrained(tmp_path / "base")
    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig(granularity=PerTensor()))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path / "int8")

    with pytest.raises(ConfigurationError, match=r"share one scale among all rows\); use the base as it was before"):
        load_backbone(str(tmp_path / "int8"), CPU, torch.float32, 64)


def test_an_lm_head_in_a_form_that_cannot_be_read_is_refused() -> None:
    packed = nn.Module()
    packed.register_buffer("weight", torch.zeros(4, 4, dtype=torch.int32))

    with pytest.raises(ConfigurationError, match="LM head of this checkpoint is quantised"):
        dense_weight(packed)


def test_activations_rounded_row_by_row_are_served(tmp_path: Path) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    tiny_model("llama").save_pretrained(tmp_path / "base")
    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path / "int8")

    backbone = load_backbone(str(tmp_path / "int8"), CPU, torch.float32, 64)

    assert len(run(make_engine(backbone), PROMPT, max_tokens=8)) == 8
