import importlib.util
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from medusa_core.config import EngineConfig, Quantization, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.errors import ConfigurationError
from medusa_core.loading import load_backbone
from medusa_core.quantization.judgement import judge_model
from medusa_core.quantization.options import OPTIONS, quantization_arguments
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec
from tests.cast import CPU, make_engine, random_heads, run, tiny_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
DEMO = Path(__file__).parents[3] / "medusa_core" / "demo" / "checkpoint"

# PyTorch's own marks of what its next version does otherwise, made while torchao is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_every_name_the_operator_may_choose_is_an_option() -> None:
    assert {"none", *OPTIONS} == set(get_args(Quantization))


@pytest.mark.parametrize(
    ("name", "device", "dtype", "named"),
    [
        ("int3", "cpu", None, "quantize is 'int3'; use none, int8"),
        ("int4", "cpu", None, "--quantize int4 needs a CUDA device of compute capability 8.0, not 'cpu'; int8 runs"),
        ("fp8", "cpu", torch.bfloat16, "--quantize fp8 needs a CUDA device of compute capability 8.9"),
    ],
)
def test_what_this_machine_cannot_run_is_named(name: str, device: str, dtype: torch.dtype | None, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        quantization_arguments(name, torch.device(device), dtype)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed here")
def test_a_package_that_is_not_installed_is_named_with_the_way_out() -> None:
    with pytest.raises(ConfigurationError, match="bnb4 needs bitsandbytes, which is not installed: pip install"):
        quantization_arguments("bnb4", CPU, torch.float32)


def test_without_quantisation_only_the_dtype_is_told() -> None:
    assert quantization_arguments("none", CPU, torch.float32) == {"dtype": torch.float32}
    assert quantization_arguments("none", CPU, None) == {"dtype": "auto"}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The folder of a tiny model, and its family; the qwen3 ties its LM head to its embeddings."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param, tie_word_embeddings=request.param == "qwen3").save_pretrained(folder)
    return str(folder), request.param


def engine_with_heads(folder: str, quantize: str, shared: bool) -> Engine:
    backbone = load_backbone(folder, CPU, torch.float32, 128, quantize)
    return make_engine(backbone, random_heads(backbone.lm_head, shared=shared), tree_nodes=12)


@pytest.mark.parametrize("shared", [True, False])
def test_a_tree_changes_no_token_of_an_int8_model(family: tuple[str, str], shared: bool) -> None:
    engine = engine_with_heads(family[0], "int8", shared)

    tree = run(engine, PROMPT, max_tokens=40)
    plain = run(engine, PROMPT, max_tokens=40, speculation=SpeculationParams(mode="off"))

    assert tree == plain


def test_int8_quantises_the_layers_and_leaves_lm_head_and_embeddings(family: tuple[str, str]) -> None:
    backbone = load_backbone(family[0], CPU, torch.float32, 128, "int8")
    plain = load_backbone(family[0], CPU, torch.float32, 128)
    weights = judge_model(backbone.model)

    assert weights is not None and weights.label == "torchao Int8WeightOnly"
    assert judge_model(plain.model) is None
    layer = backbone.model.model.layers[0].mlp.up_proj.weight
    assert type(layer) is not nn.Parameter
    # one step of 127 in each row's largest weight, halved by rounding
    original = plain.model.model.layers[0].mlp.up_proj.weight
    with torch.inference_mode():
        assert 0 < float((layer.dequantize() - original).abs().max()) < float(original.abs().max()) / 200
    assert torch.equal(backbone.lm_head, plain.lm_head)
    assert torch.equal(backbone.model.model.embed_tokens.weight, plain.model.model.embed_tokens.weight)
    assert random_heads(backbone.lm_head).weight.dtype == torch.float32


def test_weights_that_a_checkpoint_holds_quantised_are_served_as_they_are(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    quantised = load_backbone(str(tmp_path / "base"), CPU, torch.float32, 128, "int8")
    quantised.model.save_pretrained(tmp_path / "int8")

    stored = load_backbone(str(tmp_path / "int8"), CPU, torch.float32, 128)

    assert judge_model(stored.model) == judge_model(quantised.model)
    assert run(make_engine(stored), PROMPT, max_tokens=20) == run(make_engine(quantised), PROMPT, max_tokens=20)
    with pytest.raises(ConfigurationError, match=r"quantised already \(torchao Int8WeightOnly\); leave --quantize out"):
        load_backbone(str(tmp_path / "int8"), CPU, torch.float32, 128, "int8")


def test_an_engine_with_quantised_weights_says_at_the_start_whether_trees_pay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model("llama").save_pretrained(tmp_path)

    with caplog.at_level("INFO", "medusa_core.assembly"):
        engine = Engine.load(EngineConfig(model=str(tmp_path), quantize="int8"))

    assert any("Int8WeightOnly weights" in line and "trees pay up to 64 nodes" in line for line in caplog.messages)

    assert engine.info.place.quantization == "torchao Int8WeightOnly"
    assert engine.info.tree_nodes == 8
    assert len(run(engine, PROMPT, max_tokens=8, ignore_eos=True)) == 8


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="the demo checkpoint is not shipped in this tree")
def test_a_tree_changes_no_token_of_the_demo_model_in_int8(temperature: float) -> None:
    engine = Engine.load(EngineConfig(model="demo", quantize="int8", num_threads=1))
    prompt = TextCodec.load("demo").encode_chat([{"role": "user", "content": "What does textwrap.dedent do?"}])

    tree, plain = (
        run(
            engine, prompt, SamplingParams(temperature, seed=3), max_tokens=40, speculation=SpeculationParams(mode=mode)
        )
        for mode in ("tree", "off")
    )

    assert tree == plain
