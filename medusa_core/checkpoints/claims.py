"""What a config.json says of heads that the tensors do not bear out. Public configs are often wrong, tensors never."""

from collections.abc import Mapping
from typing import Any

from medusa_core.config import HeadsConfig

__all__ = ["false_claims"]


def false_claims(config: Mapping[str, Any], layout: str, heads: HeadsConfig, has_bias: bool) -> list[str]:
    """Each false claim as a sentence that goes on after "claims"; `layout` is a key of LAYOUTS."""
    nested = config.get("medusa")
    own = {**config, **nested} if isinstance(nested, Mapping) else dict(config)
    is_draft_model = config.get("model_type") == "medusa"
    counts = ["medusa_num_heads", "num_medusa_heads", *(["num_heads"] if is_draft_model else [])]
    depths = ["medusa_num_layers", "num_medusa_layers", *(["num_hidden_layers"] if is_draft_model else [])]
    actual = {
        **dict.fromkeys(counts, (heads.num_heads, "heads")),
        **dict.fromkeys(depths, (heads.num_layers, "blocks per head")),
        "hidden_size": (heads.hidden_size, "as hidden size"),
        "lm_head_rank": (heads.lm_head_rank, "as rank"),
    }
    if not heads.shared_lm_head and is_draft_model:
        actual["truncated_vocab_size"] = (heads.vocab_size, "drafted tokens")
    found = [
        f"{own[name]} {noun}, the file holds {value}"
        for name, (value, noun) in actual.items()
        if own.get(name) is not None and own[name] != value
    ]
    if str(own.get("version")) == "2" and not heads.shared_lm_head:
        found.append("version 2, whose heads share the base's LM head; the file holds LM heads")
    if layout == "vllm" and has_bias and not own.get("medusa_fc_bias"):
        found.append("no biases (medusa_fc_bias), so vLLM drops those that the file holds")
    if layout == "vllm" and own.get("original_lm_head") and not (heads.one_lm_head or heads.shared_lm_head):
        found.append("the original LM head for all heads, the file holds one for each")
    return found
