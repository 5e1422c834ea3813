import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medusa_core.checkpoints import find_heads, load_heads, save_heads
from medusa_core.errors import CheckpointError, HeadsMismatch, ModelNotFound
from tests.cast import random_heads

HIDDEN, VOCAB = 16, 40
LM_HEAD = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0))


def tensors(heads: int = 5, layers: int = 1, own: bool = True, vocab: int = VOCAB) -> dict[str, torch.Tensor]:
    """A FasterDecoding state dict: layout v1 with own LM heads, v2 without."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for head in range(heads):
        for layer in range(layers):
            found[f"{head}.{layer}.linear.weight"] = torch.randn(HIDDEN, HIDDEN, generator=generator)
            found[f"{head}.{layer}.linear.bias"] = torch.randn(HIDDEN, generator=generator)
        if own:
            found[f"{head}.{layers}.weight"] = torch.randn(vocab, HIDDEN, generator=generator)
    return found


def by_formula(state: dict[str, torch.Tensor], head: int, layers: int, row: torch.Tensor) -> torch.Tensor:
    for layer in range(layers):
        weight, bias = state[f"{head}.{layer}.linear.weight"], state[f"{head}.{layer}.linear.bias"]
        row = row + torch.nn.functional.silu(weight @ row + bias)
    return state.get(f"{head}.{layers}.weight", LM_HEAD) @ row


@pytest.mark.parametrize("own", [True, False], ids=["v1", "v2"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_both_public_layouts_load_from_both_file_types(tmp_path: Path, own: bool, layers: int, suffix: str) -> None:
    state = tensors(3, layers, own)
    file = tmp_path / f"medusa_lm_head{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    row = torch.randn(HIDDEN)

    heads = load_heads(tmp_path, LM_HEAD)

    assert (heads.config.num_heads, heads.config.num_layers, heads.config.shared_lm_head) == (3, layers, not own)
    for head in range(3):
        assert torch.allclose(heads(row)[head], by_formula(state, head, layers, row), atol=1e-4)


def test_a_config_that_claims_another_number_of_heads_is_overruled_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(tensors(5), tmp_path / "medusa_lm_head.pt")
    (tmp_path / "config.json").write_text(json.dumps({"medusa_num_heads": 2, "medusa_num_layers": 1}))

    with caplog.at_level(logging.WARNING):
        assert load_heads(tmp_path, LM_HEAD).config.num_heads == 5
    assert "claims 2 heads, the file holds 5" in caplog.text


@pytest.mark.parametrize("own", [True, False])
def test_saved_heads_load_bit_for_bit(tmp_path: Path, own: bool) -> None:
    heads = random_heads(LM_HEAD, 4, shared=not own)
    save_heads(tmp_path, heads, "some/base")

    loaded = load_heads(tmp_path, LM_HEAD)

    assert torch.equal(loaded.weight, heads.weight)
    assert torch.equal(loaded.bias, heads.bias)
    assert (loaded.lm_head is None) == (heads.lm_head is None)
    if heads.lm_head is not None and loaded.lm_head is not None:
        assert torch.equal(loaded.lm_head, heads.lm_head)
    assert json.loads((tmp_path / "config.json").read_text())["base_model_name_or_path"] == "some/base"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "medusa_lm_head.safetensors"]


def refused(tmp_path: Path, state: dict[str, torch.Tensor], error: type[Exception], reason: str) -> None:
    torch.save(state, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(error, match=reason):
        load_heads(tmp_path, LM_HEAD)


def test_an_unknown_key_is_an_error_and_never_skipped(tmp_path: Path) -> None:
    refused(tmp_path, {**tensors(), "0.gate.weight": torch.zeros(3)}, HeadsMismatch, r"'0\.gate\.weight'")


def test_a_gap_in_the_heads_names_what_is_missing(tmp_path: Path) -> None:
    state = tensors(4)
    del state["2.0.linear.weight"]
    refused(tmp_path, state, HeadsMismatch, r"lacks '2\.0\.linear\.weight'")


def test_a_head_without_its_lm_head_among_others_with_one_is_refused(tmp_path: Path) -> None:
    state = tensors(3)
    del state["1.1.weight"]
    refused(tmp_path, state, HeadsMismatch, r"lacks '1\.1\.weight'")


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    state = tensors(3)
    state["1.0.linear.bias"] = torch.zeros(7)
    refused(tmp_path, state, HeadsMismatch, r"'1\.0\.linear\.bias'.*\[7\], expected \[16\]")


def test_heads_for_another_hidden_size_are_refused(tmp_path: Path) -> None:
    torch.save(tensors(2, own=False), tmp_path / "medusa_lm_head.pt")
    with pytest.raises(HeadsMismatch, match="trained for hidden size 16, the base model has 32"):
        load_heads(tmp_path, torch.zeros(VOCAB, 32))


def test_heads_for_another_vocabulary_are_refused(tmp_path: Path) -> None:
    torch.save(tensors(2), tmp_path / "medusa_lm_head.pt")
    with pytest.raises(HeadsMismatch, match="draft from 40 tokens, the base model has 4000"):
        load_heads(tmp_path, torch.zeros(4000, HIDDEN))


@pytest.mark.parametrize("vocab", [VOCAB - 4, VOCAB + 24])
def test_a_vocabulary_that_differs_by_padding_is_accepted(tmp_path: Path, vocab: int) -> None:
    torch.save(tensors(2, vocab=vocab), tmp_path / "medusa_lm_head.pt")

    assert load_heads(tmp_path, LM_HEAD)(torch.zeros(HIDDEN)).shape == (2, min(vocab, VOCAB))


def test_a_missing_bias_becomes_zero_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {key: tensor for key, tensor in tensors(2).items() if not key.endswith("bias")}
    torch.save(state, tmp_path / "medusa_lm_head.pt")

    with caplog.at_level(logging.WARNING):
        heads = load_heads(tmp_path, LM_HEAD)
    assert not heads.bias.any()
    assert "no biases" in caplog.text


class Payload:
    """Pickles to a call that would leave a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.marker,)  # type: ignore[return-value]


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"0.0.linear.weight": Payload(marker)}, tmp_path / "medusa_lm_head.pt", pickle_module=pickle)

    with pytest.raises(CheckpointError, match="more than tensors"):
        load_heads(tmp_path, LM_HEAD)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["medusa_lm_head.safetensors", "medusa_lm_head.pt"])
def test_a_truncated_file_is_called_damaged(tmp_path: Path, name: str) -> None:
    state = tensors(2)
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:300])

    with pytest.raises(CheckpointError, match="damaged"):
        load_heads(tmp_path, LM_HEAD)


def test_a_folder_without_heads_names_the_files_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"neither medusa_lm_head\.safetensors nor medusa_lm_head\.pt"):
        load_heads(tmp_path, LM_HEAD)


def test_heads_are_found_in_a_checkpoint_or_in_its_heads_folder(tmp_path: Path) -> None:
    assert find_heads(str(tmp_path)) is None
    torch.save(tensors(2), tmp_path / "medusa_lm_head.pt")
    assert find_heads(str(tmp_path)) == tmp_path
    (tmp_path / "heads").mkdir()
    torch.save(tensors(2), tmp_path / "heads" / "medusa_lm_head.pt")
    assert find_heads(str(tmp_path)) == tmp_path / "heads"
