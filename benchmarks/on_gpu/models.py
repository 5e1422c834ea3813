"""Models of real shapes with random weights, made on the device: good for step times, not for tokens per step."""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from medusa_core.backbone import ATTENTION, TransformersBackbone, register_attention
from medusa_core.heads import DraftHeads

__all__ = ["SHAPES", "SMOKE", "Shape", "bytes_per_step", "make_backbone", "make_heads"]


@dataclass(frozen=True)
class Shape:
    """A Llama of some size."""

    name: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int


SHAPES = (
    Shape("7B (Llama-2)", 4096, 32, 11008, 32, 32, 32000),
    Shape("8B (Llama-3.1)", 4096, 32, 14336, 32, 8, 128256),
)
SMOKE = (Shape("tiny", 64, 1, 96, 4, 2, 211),)


@torch.no_grad()
def make_backbone(shape: Shape, rows: int, device: torch.device, dtype: torch.dtype) -> TransformersBackbone:
    """A random model that takes sequences of so many rows."""
    register_attention()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=rows,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=dtype)
    return TransformersBackbone(model.to(device).eval())


@torch.no_grad()
def make_heads(backbone: TransformersBackbone, kind: str, num_heads: int) -> DraftHeads | None:
    """Random heads: with LM heads of their own, sharing the base's, or drafting from a part of the vocabulary.

    `int8` are own ones in int8; None where the device has no kernel for them.
    """
    lm_head = backbone.lm_head
    ids = torch.arange(min(16384, backbone.vocab_size), device=lm_head.device) if kind == "16k tokens" else None
    heads = DraftHeads.from_base(lm_head, num_heads, shared_lm_head=kind == "shared", token_ids=ids)
    heads.weight.normal_(std=heads.config.hidden_size**-0.5)
    heads.requires_grad_(False)
    if kind == "int8" and not heads.quantize_lm_heads():
        return None
    return heads


def bytes_per_step(backbone: TransformersBackbone, shape: Shape, context: int) -> int:
    """What a step of one token reads at least: the weights but the embeddings, and the rows of the cache."""
    itemsize = torch.empty(0, dtype=backbone.dtype).element_size()
    weights = sum(parameter.numel() for parameter in backbone.model.parameters()) - shape.vocab * shape.hidden
    rows = 2 * shape.layers * shape.kv_heads * (shape.hidden // shape.heads) * context
    return itemsize * (weights + rows)
