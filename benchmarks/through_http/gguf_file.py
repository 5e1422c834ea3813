"""A Llama checkpoint as llama.cpp reads it: the same weights in float32, in one GGUF file.

Peers are given prompts as token ids, so of the tokenizer only what turns tokens back into text has to be right; how
llama.cpp would split a text into words before it looks for tokens is left at GPT-2's way.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from medusa_core.errors import CheckpointError, ConfigurationError

__all__ = ["interleaved", "named", "write_gguf"]

# Our name of a layer's part, and theirs.
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a query or key projection in the order in which llama.cpp rotates them.

    transformers rotates element i of a head with element i + D / 2, llama.cpp element 2 i with 2 i + 1.

    weight: [heads * D, H]; returns the same shape.
    """
    rows = weight.shape[0]
    return weight.reshape(num_heads, 2, rows // num_heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def named(name: str) -> str:
    """Their name of one of our tensors; raises ConfigurationError for one that a plain Llama does not have."""
    module, _, kind = name.rpartition(".")
    if kind == "weight" and module in OUTER_NAMES:
        return f"{OUTER_NAMES[module]}.weight"
    if kind == "weight" and module.startswith("model.layers."):
        number, _, part = module.removeprefix("model.layers.").partition(".")
        if part in LAYER_NAMES:
            return f"blk.{number}.{LAYER_NAMES[part]}.weight"
    raise ConfigurationError(f"{name} has no place in a plain Llama; llama.cpp's own converter knows other families")


def write_gguf(folder: Path, target: Path) -> None:
    """Write the checkpoint in a folder as float32 GGUF; the file is whole or not there.

    Raises ConfigurationError for a model that is no plain Llama with a byte-level tokenizer.
    """
    from gguf import GGUFWriter

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _check(config)
    partial = target.with_name(target.name + ".partial")
    writer = GGUFWriter(partial, "llama")
    _add_shape(writer, config)
    _add_tokenizer(writer, folder, config)
    for name, weight in _weights(folder, config):
        writer.add_tensor(name, weight.float().contiguous().numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {target}: {error.strerror}; choose another folder") from error


def _check(config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    if config["model_type"] != "llama" or rope.get("rope_type", "default") != "default":
        raise ConfigurationError(
            f"only plain Llama models are written as GGUF, this is {config['model_type']} with rope "
            f"{rope.get('rope_type', 'default')}; llama.cpp's own converter knows others"
        )


def _add_shape(writer: Any, config: Mapping[str, Any]) -> None:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    rope = config.get("rope_parameters") or {}
    writer.add_name("benchmarked")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(0)  # all of it float32


def _add_tokenizer(writer: Any, folder: Path, config: Mapping[str, Any]) -> None:
    from gguf import TokenType

    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if tokenizer["model"]["type"] != "BPE" or tokenizer["model"].get("byte_fallback"):
        raise ConfigurationError("only byte-level BPE tokenizers are written as GGUF; use llama.cpp's own converter")
    tokens = [f"[PAD{number}]" for number in range(config["vocab_size"])]
    kinds = [TokenType.UNUSED] * len(tokens)
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number], kinds[number] = token, TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], kind
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(_first(config["eos_token_id"]))
    writer.add_add_bos_token(False)


def _first(token: int | list[int]) -> int:
    return token if isinstance(token, int) else token[0]


def _weights(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Their name and our tensor, of every file of the checkpoint."""
    query_heads = config["num_attention_heads"]
    heads = {"q_proj": query_heads, "k_proj": config.get("num_key_value_heads") or query_heads}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                weight, part = tensors.get_tensor(name), name.split(".")[-2]
                yield named(name), interleaved(weight, heads[part]) if part in heads else weight
