import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from medusa_core.config import EngineConfig
from medusa_core.engine import Engine
from medusa_core.errors import CheckpointError, ConfigurationError, ModelNotFound, UnsupportedModel
from medusa_core.loading import choose_device, choose_dtype, default_context, fix_longrope, load_backbone
from tests.cast import CPU, TINY, make_engine, run, tiny_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def saved(folder: Path, family: str = "llama", **changes: object) -> str:
    tiny_model(family, **changes).save_pretrained(folder)
    return str(folder)


def test_a_folder_without_a_model_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no model at .*give a folder with config.json or a hub id"):
        Engine.load(EngineConfig(model=str(tmp_path)))


def test_a_revision_of_a_hub_id_is_loaded_configuration_and_weights(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--some-model"
    (repository / "refs").mkdir(parents=True)
    for revision, layers in (("main", 1), ("older", 3)):
        saved(repository / "snapshots" / f"{revision}-commit", num_hidden_layers=layers)
        (repository / "refs" / revision).write_text(f"{revision}-commit")
    program = (
        "import torch; from medusa_core.loading import load_backbone\n"
        "backbone = load_backbone('someone/some-model@older', torch.device('cpu'), None, 64)\n"
        "assert len(backbone.model.model.layers) == 3"
    )

    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_a_folder_whose_weights_are_missing_is_refused(tmp_path: Path) -> None:
    model = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()

    with pytest.raises(ModelNotFound, match="weights"):
        Engine.load(EngineConfig(model=model))


@pytest.mark.parametrize("length", [5, 20_000])
def test_weights_that_were_cut_short_are_refused(tmp_path: Path, length: int) -> None:
    model = saved(tmp_path)
    os.truncate(tmp_path / "model.safetensors", length)

    with pytest.raises(CheckpointError, match=r"damaged: .*copy them again"):
        load_backbone(model, CPU, torch.float32, 64)


@pytest.mark.parametrize("family", ["mamba", "rwkv", "falcon", "jamba", "qwen3_next", "deepseek_v3", "bloom"])
def test_families_that_cannot_work_are_refused_by_name(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = AutoConfig.for_model(family, **TINY)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)

    with pytest.raises(UnsupportedModel, match=family):
        load_backbone(str(tmp_path), CPU, None, 64)


def test_rope_that_changes_with_the_length_is_refused_by_name(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = saved(tmp_path, rope_parameters=rope)

    with pytest.raises(UnsupportedModel, match=r"llama.*dynamic"):
        load_backbone(model, CPU, None, 64)


def test_a_family_without_a_last_position_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="'bloom'"):
        default_context(AutoConfig.for_model("bloom"))


def test_a_context_beyond_the_models_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"1000.*256 positions; lower it"):
        Engine.load(EngineConfig(model=saved(tmp_path), max_context=1000))


def test_cache_memory_follows_max_context_and_not_the_models_positions(tmp_path: Path) -> None:
    engine = Engine.load(EngineConfig(model=saved(tmp_path), max_context=40))

    assert engine.info.max_context == 40
    assert engine._cache.rows <= 128, "the context, a tree behind it, rounded up to 64"


def test_bin_weights_load_and_answer_like_safetensors(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    expected = run(Engine.load(EngineConfig(model=str(tmp_path))), PROMPT, max_tokens=12, ignore_eos=True)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")

    engine = Engine.load(EngineConfig(model=str(tmp_path)))

    assert run(engine, PROMPT, max_tokens=12, ignore_eos=True) == expected


def with_tensors(folder: Path, more: dict[str, torch.Tensor], without: str | None = None) -> str:
    """A tiny llama whose one weight file holds more tensors, and lacks one."""
    model = saved(folder)
    tensors = {key: tensor for key, tensor in load_file(folder / "model.safetensors").items() if key != without}
    save_file({**tensors, **more}, folder / "model.safetensors", {"format": "pt"})
    return model


def test_tensors_of_heads_among_the_bases_own_are_no_surprise_and_others_are_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_backbone(with_tensors(tmp_path, {"medusa_head.0.0.linear.weight": torch.zeros(32, 32)}), CPU, None, 64)
    assert caplog.messages == []

    load_backbone(with_tensors(tmp_path, {"model.layers.7.bias": torch.zeros(1)}), CPU, None, 64)
    (line,) = caplog.messages
    assert "1 tensors its architecture does not use, such as model.layers.7.bias" in line


def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(tmp_path: Path) -> None:
    model = with_tensors(tmp_path, {}, without="model.layers.1.mlp.up_proj.weight")

    with pytest.raises(CheckpointError, match=r"lack 1 tensors, 'model\.layers\.1\.mlp\.up_proj\.weight' among them"):
        load_backbone(model, CPU, None, 64)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = saved(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**facts, "intermediate_size": 40}))

    with pytest.raises(CheckpointError, match=r"cannot be loaded: .*mlp"):
        load_backbone(model, CPU, None, 64)


def test_greedy_generation_config_becomes_temperature_zero(tmp_path: Path) -> None:
    model = saved(tmp_path)
    facts = json.loads((tmp_path / "generation_config.json").read_text())
    for do_sample, expected in ((False, {"temperature": 0.0}), (True, {"temperature": 0.6, "top_p": 0.9})):
        sampling = {"do_sample": do_sample, **({"temperature": 0.6, "top_p": 0.9} if do_sample else {})}
        (tmp_path / "generation_config.json").write_text(json.dumps({**facts, **sampling}))

        assert Engine.load(EngineConfig(model=model)).info.default_sampling == expected


def longrope(**changes: object) -> dict[str, object]:
    """A phi3 with 32 original positions whose short and long factors differ."""
    return {
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.0, 1.0, 1.0],
            "long_factor": [4.0, 3.0, 2.0, 1.5],
            "original_max_position_embeddings": 32,
            **changes,
        },
    }


@pytest.mark.parametrize(("max_context", "chosen"), [(32, "short_factor"), (33, "long_factor")])
def test_longrope_factors_are_fixed_by_the_context(max_context: int, chosen: str) -> None:
    config = AutoConfig.for_model("phi3", **{**TINY, **longrope()})
    expected = config.rope_parameters[chosen]

    fix_longrope(config, max_context)

    assert config.rope_parameters["short_factor"] == config.rope_parameters["long_factor"] == expected


def test_longrope_decodes_across_its_boundary_as_one_pass_would(tmp_path: Path) -> None:
    model = saved(tmp_path, "phi3", **longrope())
    backbone = load_backbone(model, CPU, None, 96)
    answer = run(make_engine(backbone, max_context=96), PROMPT, max_tokens=60)

    with torch.inference_mode():
        backbone.model.set_attn_implementation("eager")
        tokens = torch.tensor([PROMPT + answer])
        straight = backbone.model(tokens).logits[0].argmax(-1)

    assert straight[len(PROMPT) - 1 : -1].tolist() == answer


def test_unknown_devices_and_dtypes_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="auto, cpu or cuda"):
        choose_device("abacus")
    with pytest.raises(ConfigurationError, match="auto, float32"):
        choose_dtype("float31", CPU)


def test_dtype_auto_is_float32_on_a_cpu_and_the_checkpoints_own_elsewhere() -> None:
    assert choose_dtype("auto", CPU) is torch.float32
    assert choose_dtype("auto", torch.device("cuda")) is None
