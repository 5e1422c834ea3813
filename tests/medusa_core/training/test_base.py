from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from medusa_core.errors import CheckpointError, ModelNotFound
from medusa_core.training.base import FrozenBase
from tests.medusa_core.training.cast import alone, base, packed, saved_base, tokenizer

CPU = torch.device("cpu")

# Each with what is special about it: a window, a cap on its logits, a scale of them.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6},
    "phi3": {},
    "cohere": {},
    "granite": {"logits_scaling": 4.0},
    "gpt_neox": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
}


def family(name: str) -> FrozenBase:
    config = AutoConfig.for_model(
        name,
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **FAMILIES[name],
    )
    torch.manual_seed(0)
    return FrozenBase.of(name, AutoModelForCausalLM.from_config(config).requires_grad_(False), tokenizer())


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_and_logits_are_the_models_own(name: str) -> None:
    own, text = family(name), alone(5, 6, 7, 8, 9, 10, 11, 12)

    logits = own.logits(own.hidden(text))

    model: Any = own.model
    torch.testing.assert_close(logits, model(input_ids=text.tokens).logits.float())


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_in_one_row_come_out_as_alone_where_the_family_says_so(name: str) -> None:
    own = family(name)
    first, second = tuple(range(5, 15)), tuple(range(20, 27))
    row = packed(*[example for tokens in (first, second) for example in _examples(tokens)], length=17).chosen([0])

    together = own.hidden(row)[0]

    apart = torch.cat([own.hidden(alone(*tokens))[0] for tokens in (first, second)])
    assert own.packs == (name != "opt")
    assert torch.allclose(together, apart, atol=1e-4) == own.packs


def _examples(tokens: tuple[int, ...]) -> Any:
    from medusa_core.training.encoding import Example

    return [Example(tokens, (True,) * len(tokens))]


def test_a_loaded_base_is_frozen(tmp_path: Path) -> None:
    loaded = FrozenBase.load(str(saved_base(tmp_path)), CPU)

    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert loaded.lm_head.dtype == torch.float32
    assert loaded.vocab_size == base().vocab_size
    assert loaded.max_positions == 256


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    folder = saved_base(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"lack 1 tensors, 'model\.norm\.weight'"):
        FrozenBase.load(str(folder), CPU)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no model at"):
        FrozenBase.load(str(tmp_path), CPU)
