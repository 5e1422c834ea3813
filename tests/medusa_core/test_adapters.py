import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from medusa_core.adapters import find_adapter, merge_adapter
from medusa_core.backbone import ATTENTION, register_attention
from medusa_core.checkpoints import save_heads
from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.errors import CheckpointError, ConfigurationError, HeadsMismatch, ModelNotFound
from medusa_core.loading import load_backbone
from medusa_core.quantization import judge_model
from tests.cast import CPU, random_heads, run, tiny_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def save_lora(model: PreTrainedModel, folder: Path, targets: list[str] | str, tokens: list[int] = PROMPT) -> Tensor:
    """A random LoRA for a model, as joint training leaves it; the logits [T, V] of peft's own model, unmerged."""
    from peft import LoraConfig, get_peft_model

    lora: Any = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted: Any = get_peft_model(model, lora)
        generator = torch.Generator().manual_seed(5)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        adapted.save_pretrained(folder, save_embedding_layers=False)
        adapted.eval()
        with torch.inference_mode():
            return logits(adapted.base_model.model, tokens)


def logits(model: Any, tokens: list[int] = PROMPT) -> Tensor:
    """[T, V], computed with stock attention."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        found: Tensor = model(torch.tensor([tokens])).logits[0]
    return found


def loaded(folder: Path) -> PreTrainedModel:
    register_attention()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=ATTENTION).eval()
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"], r".*(v_proj|lm_head)", "all-linear"], ids=str
)
def test_merging_computes_what_the_adapter_computes(tmp_path: Path, targets: list[str] | str, tied: bool) -> None:
    tiny_model("llama", tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    base = logits(loaded(tmp_path / "base"))
    expected = save_lora(loaded(tmp_path / "base"), tmp_path / "heads" / "adapter", targets)

    merged = merge_adapter(loaded(tmp_path / "base"), tmp_path / "heads" / "adapter")

    assert float((logits(merged) - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert float((base - expected).abs().max()) > 0.1


def test_an_adapter_of_a_tied_lm_head_leaves_the_embeddings_alone(tmp_path: Path) -> None:
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    save_lora(loaded(tmp_path / "base"), tmp_path / "adapter", ["lm_head"])
    before: Any = loaded(tmp_path / "base")

    merged: Any = merge_adapter(loaded(tmp_path / "base"), tmp_path / "adapter")

    assert torch.equal(merged.get_input_embeddings().weight, before.get_input_embeddings().weight)
    assert not torch.equal(merged.get_output_embeddings().weight, before.get_output_embeddings().weight)


def test_the_adapter_stands_beside_the_heads_in_a_folder_or_a_file(tmp_path: Path) -> None:
    assert find_adapter(tmp_path) is None
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "medusa_lm_head.safetensors").touch()

    assert find_adapter(tmp_path) == find_adapter(tmp_path / "medusa_lm_head.safetensors") == tmp_path / "adapter"


def test_heads_that_are_nowhere_are_named_with_the_way_out() -> None:
    with pytest.raises(ModelNotFound, match=r"no heads at 'no/such/heads@main': .*give a folder, a file or a hub id"):
        find_adapter("no/such/heads@main")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 16, "intermediate_size": 24}, "size mismatch"),
        ({"num_hidden_layers": 1}, "is too many"),
        ({"num_hidden_layers": 3}, "is missing"),
    ],
)
def test_another_bases_adapter_is_refused(tmp_path: Path, changes: dict[str, int], named: str) -> None:
    save_lora(tiny_model("llama"), tmp_path, ["q_proj"])

    with pytest.raises(HeadsMismatch, match=rf"does not fit the base model: .*{named}.*--no-adapter"):
        merge_adapter(tiny_model("llama", **changes), tmp_path)


def test_an_adapter_of_layers_the_base_does_not_have_is_refused(tmp_path: Path) -> None:
    save_lora(tiny_model("llama"), tmp_path, ["q_proj"])

    with pytest.raises(HeadsMismatch, match=r"does not fit the base model: .*arget modules"):
        merge_adapter(tiny_model("gpt_neox"), tmp_path)


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    save_lora(tiny_model("llama"), tmp_path, ["q_proj"])
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({key: torch.full_like(tensor, torch.nan) for key, tensor in whole.items()}, file)
    with pytest.raises(CheckpointError, match="cannot be read: NaNs"):
        merge_adapter(tiny_model("llama"), tmp_path)

    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        merge_adapter(tiny_model("llama"), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        merge_adapter(tiny_model("llama"), tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_adapter_is_merged_before_the_base_is_quantised(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny_model("llama").save_pretrained(base)
    expected = save_lora(loaded(base), adapter, ["q_proj", "lm_head"])

    backbone = load_backbone(str(base), CPU, torch.float32, 64, "int8", adapter)
    found = judge_model(backbone.model)

    assert found is not None and found.label == "torchao Int8WeightOnly"
    # what rounding to int8 does is far less than what the adapter does
    error, effect = (logits(backbone.model) - expected).abs().mean(), (logits(loaded(base)) - expected).abs().mean()
    assert 0 < float(error) < float(effect) / 5

    merge_adapter(loaded(base), adapter).save_pretrained(tmp_path / "merged")
    shutil.copy(base / "generation_config.json", tmp_path / "merged")
    through_the_loader = load_backbone(str(tmp_path / "merged"), CPU, torch.float32, 64, "int8")
    assert torch.equal(logits(through_the_loader.model), logits(backbone.model))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_adapter_for_weights_that_are_quantised_already_is_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    save_lora(loaded(tmp_path / "base"), tmp_path / "adapter", ["q_proj"])
    load_backbone(str(tmp_path / "base"), CPU, torch.float32, 64, "int8").model.save_pretrained(tmp_path / "int8")

    with pytest.raises(ConfigurationError, match=r"cannot be merged into the weights.*base as it was before.*--no-ada"):
        load_backbone(str(tmp_path / "int8"), CPU, torch.float32, 64, "none", tmp_path / "adapter")
    with pytest.raises(ConfigurationError, match=r"cannot be quantised as bnb4; use --quantize int8"):
        load_backbone(str(tmp_path / "base"), CPU, torch.float32, 64, "bnb4", tmp_path / "adapter")


def test_with_the_adapter_off_the_text_is_the_bases_own_and_heads_still_propose(tmp_path: Path) -> None:
    base, heads = tmp_path / "base", tmp_path / "heads"
    model = tiny_model("llama")
    model.save_pretrained(base)
    save_heads(heads, random_heads(model.get_output_embeddings().weight), str(base))
    save_lora(loaded(base), heads / "adapter", ["q_proj", "v_proj"])

    def answer(**options: Any) -> tuple[Engine, list[int]]:
        engine = Engine.load(EngineConfig(model=str(base), **options))
        return engine, run(engine, PROMPT, max_tokens=30, ignore_eos=True)

    (_, alone), (on, adapted) = answer(), answer(heads=str(heads))
    off, untouched = answer(heads=str(heads), adapter=False)

    assert untouched == alone != adapted
    assert (off.info.num_heads, off.info.adapter) == (3, None)
    assert (on.info.num_heads, on.info.adapter) == (3, str(heads / "adapter"))
    plain = run(on, PROMPT, max_tokens=30, ignore_eos=True, speculation=SpeculationParams(mode="off"))
    assert adapted == plain
