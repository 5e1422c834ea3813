"""Each public layout in miniature, with exactly its keys, shapes and config fields."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, VOCAB = 16, 40
LM_HEAD = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0))

State = dict[str, Tensor]


def state_dict(heads: int = 5, layers: int = 1, own: bool = True, vocab: int = VOCAB) -> State:
    """Heads as FasterDecoding spells them: layout v1 with own LM heads, v2 without."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for head in range(heads):
        for layer in range(layers):
            found[f"{head}.{layer}.linear.weight"] = torch.randn(HIDDEN, HIDDEN, generator=generator)
            found[f"{head}.{layer}.linear.bias"] = torch.randn(HIDDEN, generator=generator)
        if own:
            found[f"{head}.{layers}.weight"] = torch.randn(vocab, HIDDEN, generator=generator)
    return found


def expected(state: State, head: int, layers: int, row: Tensor, lm_head: Tensor = LM_HEAD) -> Tensor:
    """Logits [V] of one head for a row [H], by the paper's formula."""
    for layer in range(layers):
        weight = state[f"{head}.{layer}.linear.weight"]
        row = row + torch.nn.functional.silu(weight @ row + state.get(f"{head}.{layer}.linear.bias", torch.zeros(())))
    return state.get(f"{head}.{layers}.weight", lm_head) @ row


def base_tensors(family: str = "llama") -> State:
    """A base model's tensors, without which nothing could be told apart."""
    generator = torch.Generator().manual_seed(9)
    return {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=generator),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(HIDDEN, HIDDEN, generator=generator),
        "model.layers.0.mlp.up_proj.weight": torch.randn(24, HIDDEN, generator=generator),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": LM_HEAD.clone(),
    }


def _config(folder: Path, **fields: Any) -> None:
    (folder / "config.json").write_text(json.dumps(fields))


def write_sharded(folder: Path, shards: list[State], suffix: str) -> None:
    """Shards and their index as transformers writes them."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    placed = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}"
        save_file(shard, folder / name) if suffix == "safetensors" else torch.save(shard, folder / name)
        placed |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def layout_a(folder: Path) -> State:
    state = state_dict(5)
    torch.save(state, folder / "medusa_lm_head.pt")
    _config(
        folder,
        base_model_name_or_path="lmsys/vicuna-7b-v1.3",
        medusa_num_heads=2,
        medusa_num_layers=1,
        transformers_version="4.31.0",
    )
    return state


def layout_b(folder: Path) -> State:
    state = state_dict(3, own=False)
    save_file(state, folder / "medusa_lm_head.safetensors")
    _config(
        folder,
        base_model_name_or_path="lmsys/vicuna-7b-v1.3",
        medusa_num_heads=3,
        medusa_num_layers=1,
        transformers_version="4.34.1",
        version="2",
    )
    return state


def _base_config(**fields: Any) -> dict[str, Any]:
    known = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": HIDDEN}
    return {**known, "vocab_size": VOCAB, "num_hidden_layers": 1, "num_attention_heads": 2, **fields}


def layout_c(folder: Path, suffix: str = "safetensors") -> State:
    state, base = state_dict(5), base_tensors()
    named = {f"medusa_head.{key}": tensor for key, tensor in state.items()}
    half = len(named) // 2
    shards = [
        base,
        dict(list(named.items())[:half]),
        {**dict(list(named.items())[half:]), "model.extra.weight": LM_HEAD},
    ]
    write_sharded(folder, shards, suffix)
    _config(folder, **_base_config(medusa_num_heads=5, medusa_num_layers=1))
    return state


def layout_c_bin(folder: Path) -> State:
    return layout_c(folder, "bin")


def layout_d(folder: Path) -> State:
    state = state_dict(3)
    save_file(state, folder / "medusa_lm_head.safetensors")
    _config(
        folder, base_model_name_or_path="mistralai/Mistral-7B-Instruct-v0.2", medusa_num_heads=3, medusa_num_layers=1
    )
    return state


def as_vllm(state: State) -> State:
    """Keys of layout E for those of A."""
    renamed = {}
    for key, tensor in state.items():
        head, layer, *rest = key.split(".")
        name = f"blocks.{head}.layers.{layer}.{rest[-1]}" if "linear" in rest else f"lm_heads.{head}.weight"
        renamed[name] = tensor
    return renamed


def vllm_config(**fields: Any) -> dict[str, Any]:
    known = {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": HIDDEN,
        "vocab_size": VOCAB,
        "num_heads": 5,
        "num_hidden_layers": 1,
        "truncated_vocab_size": VOCAB,
        "max_paths": 64,
        "topk": 10,
        "logit_scale": 1.0,
    }
    return {**known, **fields}


def layout_e(folder: Path) -> State:
    """As published: exactly the weights, no biases."""
    state = {key: tensor for key, tensor in state_dict(5).items() if not key.endswith("bias")}
    save_file(as_vllm(state), folder / "model.safetensors")
    _config(folder, **vllm_config())
    return state


def layout_e_with_biases(folder: Path) -> State:
    state = state_dict(5)
    save_file({f"medusa_heads.{key}": tensor for key, tensor in as_vllm(state).items()}, folder / "model.safetensors")
    _config(folder, **vllm_config(medusa_fc_bias=True))
    return state


def layout_f1(folder: Path) -> State:
    state, renamed = state_dict(4), {}
    for key, tensor in state.items():
        head, layer, *rest = key.split(".")
        inner = f"medusa_layers.{layer}.linear.{rest[-1]}" if "linear" in rest else "lm_head.weight"
        renamed[f"medusa_heads.{head}.{inner}"] = tensor
    base = {
        "transformer.vocab_embedding.weight": LM_HEAD.clone(),
        "transformer.layers.0.attention.qkv.weight": torch.ones(HIDDEN, HIDDEN),
        "lm_head.weight": LM_HEAD.clone(),
    }
    save_file({**base, **renamed}, folder / "rank0.safetensors")
    _config(folder, num_medusa_heads=4, num_medusa_layers=1, max_draft_len=63)
    return state


def layout_f2(folder: Path) -> State:
    """FP8 weights with a scale each; what they stand for is returned."""
    state, stored = state_dict(2), base_tensors()
    for key, tensor in list(state.items()):
        if key.endswith(".weight"):
            scale = (tensor.abs().max() / 448.0).float()
            eight = (tensor / scale).to(torch.float8_e4m3fn)
            stem = f"medusa_heads.{key.removesuffix('.weight')}"
            stored |= {f"{stem}.weight": eight, f"{stem}.weight_scale": scale, f"{stem}.input_scale": torch.ones(())}
            state[key] = (eight.float() * scale).bfloat16().float()
        else:
            stored[f"medusa_heads.{key}"] = tensor
    save_file(stored, folder / "model.safetensors")
    _config(folder, **_base_config(medusa={"num_medusa_heads": 2, "num_medusa_layers": 1}))
    return state


PUBLIC: dict[str, Callable[[Path], State]] = {
    "A": layout_a,
    "B": layout_b,
    "C": layout_c,
    "C in .bin": layout_c_bin,
    "D": layout_d,
    "E": layout_e,
    "E with biases": layout_e_with_biases,
    "F1": layout_f1,
    "F2": layout_f2,
}
# As which each is recognised; A and D have the same keys.
RECOGNISED = {
    "A": "medusa-v1",
    "B": "medusa-v2",
    "C": "full",
    "C in .bin": "full",
    "D": "medusa-v1",
    "E": "vllm",
    "E with biases": "vllm",
    "F1": "tensorrt-llm",
    "F2": "modelopt",
}
