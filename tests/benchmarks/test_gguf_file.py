import json
from pathlib import Path

import pytest
import torch

from benchmarks.through_http.gguf_file import interleaved, named, write_gguf
from medusa_core.errors import ConfigurationError
from tests.cast import tiny_model
from tests.tiny_tokenizers import save_byte_level


def rotated_in_halves(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """As transformers does: element i with element i + D / 2. x [D], angles [D / 2]."""
    left, right = x.chunk(2)
    return torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()])


def rotated_in_pairs(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """As llama.cpp does: element 2 i with element 2 i + 1."""
    left, right = x[0::2], x[1::2]
    pairs = left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()
    return torch.stack(pairs, dim=1).flatten()


def test_reordered_projections_give_the_same_attention_scores_in_the_other_rotation() -> None:
    torch.manual_seed(3)
    heads, head_dim, hidden = 2, 8, 6
    query, key = (torch.randn(heads * head_dim, hidden, dtype=torch.float64) for _ in range(2))
    x, y = torch.randn(2, hidden, dtype=torch.float64)
    here, there = torch.randn(2, head_dim // 2, dtype=torch.float64)

    for head in range(heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        ours = rotated_in_halves(query[rows] @ x, here) @ rotated_in_halves(key[rows] @ y, there)
        q, k = interleaved(query, heads)[rows], interleaved(key, heads)[rows]
        theirs = rotated_in_pairs(q @ x, here) @ rotated_in_pairs(k @ y, there)
        torch.testing.assert_close(theirs, ours)
    assert not torch.equal(interleaved(query, heads), query)


def test_tensors_go_by_their_own_names_there() -> None:
    assert named("model.layers.3.self_attn.q_proj.weight") == "blk.3.attn_q.weight"
    assert named("model.embed_tokens.weight") == "token_embd.weight"


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.router.weight", "x"])
def test_a_tensor_without_a_place_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        named(name)


def test_the_file_holds_weights_shape_and_tokens(tmp_path: Path) -> None:
    from gguf import GGUFReader

    model = tiny_model("llama", vocab_size=310, eos_token_id=1)
    model.save_pretrained(tmp_path)
    save_byte_level(tmp_path)

    write_gguf(tmp_path, tmp_path / "model.gguf")

    file = GGUFReader(tmp_path / "model.gguf")
    weights = {tensor.name: torch.tensor(tensor.data) for tensor in file.tensors}
    heads = model.config.num_key_value_heads
    torch.testing.assert_close(
        weights["blk.0.attn_k.weight"], interleaved(model.model.layers[0].self_attn.k_proj.weight.detach(), heads)
    )
    torch.testing.assert_close(weights["output.weight"], model.lm_head.weight.detach())
    tokens = file.fields["tokenizer.ggml.tokens"].contents()
    assert (tokens[1], tokens[-1]) == ("<|end|>", "[PAD309]")
    assert file.fields["llama.attention.head_count_kv"].contents() == heads
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_other_families_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi3"}))

    with pytest.raises(ConfigurationError, match="phi3"):
        write_gguf(tmp_path, tmp_path / "model.gguf")
