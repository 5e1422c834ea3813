import json
import logging
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medusa_core.checkpoints import find_heads, load_heads, locate_heads
from medusa_core.checkpoints.reading import open_heads, read_heads
from medusa_core.errors import CheckpointError, HeadsMismatch, ModelNotFound
from tests.medusa_core.checkpoints.public import (
    HIDDEN,
    LM_HEAD,
    PUBLIC,
    RECOGNISED,
    VOCAB,
    State,
    as_vllm,
    base_tensors,
    expected,
    layout_c,
    layout_d,
    layout_f2,
    vllm_config,
    write_sharded,
)
from tests.medusa_core.checkpoints.public import state_dict as tensors

ROW = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))


def num_heads(state: State) -> int:
    return 1 + max(int(key.split(".")[0]) for key in state)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_layout_is_recognised_and_computes_what_the_paper_says(tmp_path: Path, name: str) -> None:
    state = PUBLIC[name](tmp_path)

    heads = load_heads(tmp_path, LM_HEAD)

    assert read_heads(open_heads(tmp_path)).layout == RECOGNISED[name]
    assert heads.config.num_heads == num_heads(state)
    for head in range(heads.config.num_heads):
        assert torch.allclose(heads(ROW)[head], expected(state, head, 1, ROW), atol=1e-4)


@pytest.mark.parametrize("name", ["C", "C in .bin", "F2"])
def test_heads_inside_a_full_model_are_found_without_reading_a_weight_of_the_base(tmp_path: Path, name: str) -> None:
    PUBLIC[name](tmp_path)
    if name != "F2":
        # the shard of the base alone: whoever opened it would fail
        (shard,) = tmp_path.glob("*-00001-of-00003.*")
        shard.write_bytes(b"")

    assert find_heads(str(tmp_path)) == tmp_path
    assert load_heads(tmp_path, LM_HEAD).config.num_heads > 1


def test_a_base_model_alone_carries_no_heads(tmp_path: Path) -> None:
    write_sharded(tmp_path, [base_tensors()], "safetensors")
    save_file(base_tensors(), tmp_path / "model.safetensors")

    assert find_heads(str(tmp_path)) is None
    with pytest.raises(ModelNotFound, match="with the keys of heads"):
        load_heads(tmp_path, LM_HEAD)


def test_a_hub_id_that_was_fetched_before_carries_what_its_folder_carries(tmp_path: Path) -> None:
    layout_c(tmp_path)
    known = {"owner/name": tmp_path}

    assert find_heads("owner/name", known.get) == tmp_path
    assert find_heads("owner/other", known.get) is None


WRAPPED = {
    "data parallel": "module.{}",
    "PEFT": "base_model.model.medusa_head.{}",
    "PEFT's trained copy": "base_model.model.medusa_head.{}",
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_training_wrappers_put_into_keys_is_taken_off(tmp_path: Path, wrapper: str) -> None:
    state, stored = tensors(2), {}
    for key, tensor in state.items():
        name = WRAPPED[wrapper].format(key)
        if wrapper == "PEFT's trained copy":
            head, rest = key.split(".", 1)
            name = f"base_model.model.medusa_head.{head}.modules_to_save.default.{rest}"
            stored[name.replace("modules_to_save.default", "original_module")] = torch.zeros_like(tensor)
            stored["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(2, HIDDEN)
        stored[name] = tensor
    save_file(stored, tmp_path / "adapter_model.safetensors")

    assert torch.allclose(load_heads(tmp_path, LM_HEAD)(ROW)[1], expected(state, 1, 1, ROW), atol=1e-4)


def test_an_unknown_key_beside_a_full_models_own_is_an_error(tmp_path: Path) -> None:
    named = {f"medusa_head.{key}": tensor for key, tensor in tensors(2).items()}
    write_sharded(tmp_path, [base_tensors(), {**named, "medusa_head.gate": torch.ones(1)}], "safetensors")
    with pytest.raises(HeadsMismatch, match=r"'medusa_head\.gate'"):
        load_heads(tmp_path, LM_HEAD)


def test_a_shard_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    layout_c(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names the shard 'model-00002-of-00003.safetensors', which is not"):
        load_heads(tmp_path, LM_HEAD)


def test_a_truncated_vocabulary_drafts_the_tokens_of_its_map(tmp_path: Path) -> None:
    ids, state = torch.tensor([5, 39, 2]), tensors(2, vocab=3)
    save_file({**as_vllm(state), "token_map": ids}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(vllm_config(truncated_vocab_size=3, num_heads=2)))

    heads = load_heads(tmp_path, LM_HEAD)

    assert heads.config.vocab_size == 3
    assert heads.as_tokens(torch.tensor([1])).tolist() == [39]
    assert torch.allclose(heads(ROW)[1], expected(state, 1, 1, ROW), atol=1e-4)


def test_whole_lm_heads_beside_a_map_are_cut_to_its_tokens(tmp_path: Path) -> None:
    ids, state = torch.tensor([5, 39, 2]), tensors(2)
    save_file({**as_vllm(state), "token_map": ids}, tmp_path / "model.safetensors")

    heads = load_heads(tmp_path, LM_HEAD)

    assert torch.allclose(heads(ROW)[0], expected(state, 0, 1, ROW)[ids], atol=1e-4)


def test_a_map_of_distances_is_read_as_the_tokens_it_means(tmp_path: Path) -> None:
    ids = torch.tensor([2, 5, 39])
    state = {**tensors(2, vocab=3), "d2t": ids - torch.arange(3), "t2d": torch.zeros(VOCAB, dtype=torch.bool)}
    save_file(state, tmp_path / "medusa_lm_head.safetensors")

    assert load_heads(tmp_path, LM_HEAD).as_tokens(torch.arange(3)).tolist() == [2, 5, 39]


def test_a_map_without_lm_heads_drafts_with_those_rows_of_the_bases(tmp_path: Path) -> None:
    ids, state = torch.tensor([5, 39, 2]), tensors(2, own=False)
    save_file({**state, "token_map": ids}, tmp_path / "medusa_lm_head.safetensors")

    assert torch.allclose(load_heads(tmp_path, LM_HEAD)(ROW)[0], expected(state, 0, 1, ROW)[ids], atol=1e-4)


@pytest.mark.parametrize("ids", [[1, 1, 2], [-1, 2, 3]])
def test_a_map_that_is_no_list_of_tokens_is_refused(tmp_path: Path, ids: Sequence[int]) -> None:
    refused(tmp_path, {**tensors(2, vocab=3), "token_map": torch.tensor(ids)}, HeadsMismatch, "token map")


def test_a_map_to_tokens_the_base_does_not_have_is_refused(tmp_path: Path) -> None:
    state = {**tensors(2, vocab=3), "token_map": torch.tensor([1, 2, VOCAB])}
    refused(tmp_path, state, HeadsMismatch, f"draft token {VOCAB}, the base model has {VOCAB} tokens")


@pytest.mark.parametrize("key", ["lm_head.weight", "lm_heads.0.weight"])
@pytest.mark.parametrize("is_the_bases", [True, False])
def test_one_lm_head_serves_all_heads_and_is_not_kept_twice(tmp_path: Path, key: str, is_the_bases: bool) -> None:
    state, one = tensors(3, own=False), LM_HEAD.clone() if is_the_bases else 2 * LM_HEAD
    save_file({**as_vllm(state), key: one}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(vllm_config(original_lm_head=True, num_heads=3)))

    heads = load_heads(tmp_path, LM_HEAD)

    assert heads.config.shared_lm_head == is_the_bases
    assert torch.allclose(heads(ROW)[2], expected(state, 2, 1, ROW, one), atol=1e-4)


def test_lm_heads_of_two_kinds_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, {**tensors(2), "lm_head.weight": LM_HEAD}, HeadsMismatch, "more than one kind")


def test_tied_blocks_are_as_good_as_any(tmp_path: Path) -> None:
    state = tensors(2, layers=2)
    for head in range(2):
        for part in ("weight", "bias"):
            state[f"{head}.1.linear.{part}"] = state[f"{head}.0.linear.{part}"]
    torch.save(state, tmp_path / "medusa_lm_head.pt")

    assert torch.allclose(load_heads(tmp_path, LM_HEAD)(ROW)[1], expected(state, 1, 2, ROW), atol=1e-4)


def test_a_scale_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    layout_f2(tmp_path)
    stored = open_heads(tmp_path).read(open_heads(tmp_path).files)
    stored["medusa_heads.0.0.linear.weight_scale_2"] = torch.ones(())
    save_file(stored, tmp_path / "model.safetensors")

    with pytest.raises(HeadsMismatch, match="'weight_scale_2', a kind of scale that cannot be undone"):
        load_heads(tmp_path, LM_HEAD)


def test_a_bias_of_an_lm_head_belongs_to_no_layout(tmp_path: Path) -> None:
    refused(tmp_path, {**tensors(2), "0.1.bias": torch.ones(VOCAB)}, HeadsMismatch, r"'0\.1\.bias'")


def test_heads_of_unequal_depth_are_refused(tmp_path: Path) -> None:
    deeper = {"1.1.linear.weight": torch.ones(HIDDEN, HIDDEN)}
    refused(tmp_path, {**tensors(2, own=False), **deeper}, HeadsMismatch, r"lacks '0\.1\.linear\.weight'")


def test_an_lm_head_of_a_head_that_is_not_there_has_no_place(tmp_path: Path) -> None:
    refused(tmp_path, {**tensors(2), "7.1.weight": LM_HEAD}, HeadsMismatch, r"'7\.1\.weight' has no place")


def test_a_hub_id_may_name_a_revision_and_only_the_shards_with_heads_are_fetched(tmp_path: Path) -> None:
    layout_c(tmp_path)
    asked: list[tuple[str, str | None, Sequence[str]]] = []

    def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
        asked.append((name, revision, patterns))
        return tmp_path

    heads = load_heads("owner/name@refs/pr/1", LM_HEAD, download=download)

    assert heads.config.num_heads == 5
    assert {(name, revision) for name, revision, _ in asked} == {("owner/name", "refs/pr/1")}
    assert asked[-1][2] == [f"model-0000{number}-of-00003.safetensors" for number in (2, 3)]


@pytest.mark.parametrize("public", [layout_c, layout_d])
def test_what_stands_beside_the_heads_of_a_hub_id_is_found_where_they_were_fetched(
    tmp_path: Path, public: Callable[[Path], object]
) -> None:
    public(tmp_path)
    (tmp_path / "calibration.json").write_text("{}")
    asked: list[str] = []

    def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
        asked.extend(patterns)
        return tmp_path

    found = locate_heads("owner/name@refs/pr/1", download)

    assert found.parent == tmp_path and "calibration.json" in asked
    assert load_heads(found, LM_HEAD).config == load_heads(tmp_path, LM_HEAD).config


def test_a_hub_that_does_not_answer_leaves_a_message_with_the_way_out() -> None:
    def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
        raise OSError("404 not found\nand more")

    with pytest.raises(ModelNotFound, match=r"'owner/name': 404 not found and more; give .* 'owner/name@refs/pr/1'"):
        load_heads("owner/name", LM_HEAD, download=download)


@pytest.mark.parametrize("own", [True, False], ids=["v1", "v2"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_both_public_layouts_load_from_both_file_types(tmp_path: Path, own: bool, layers: int, suffix: str) -> None:
    state = tensors(3, layers, own)
    file = tmp_path / f"medusa_lm_head{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)

    heads = load_heads(tmp_path, LM_HEAD)

    assert (heads.config.num_heads, heads.config.num_layers, heads.config.shared_lm_head) == (3, layers, not own)
    for head in range(3):
        assert torch.allclose(heads(ROW)[head], expected(state, head, layers, ROW), atol=1e-4)


def test_a_config_that_claims_another_number_of_heads_is_overruled_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(tensors(5), tmp_path / "medusa_lm_head.pt")
    (tmp_path / "config.json").write_text(json.dumps({"medusa_num_heads": 2, "medusa_num_layers": 1}))

    with caplog.at_level(logging.WARNING):
        assert load_heads(tmp_path, LM_HEAD).config.num_heads == 5
    assert "claims 2 heads, the file holds 5" in caplog.text


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
