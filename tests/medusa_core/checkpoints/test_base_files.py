import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medusa_core.checkpoints.base_files import base_folder, loaded_index, read_lm_head, vocab_size_of
from medusa_core.errors import HeadsMismatch, ModelNotFound
from tests.medusa_core.checkpoints.public import LM_HEAD, base_tensors, write_sharded


def test_the_lm_head_comes_from_the_one_shard_that_holds_it(tmp_path: Path) -> None:
    tensors = base_tensors()
    lm_head = tensors.pop("lm_head.weight")
    write_sharded(tmp_path, [tensors, {"lm_head.weight": lm_head}], "safetensors")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")

    assert torch.equal(read_lm_head(str(tmp_path)), LM_HEAD)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_tied_embeddings_are_the_lm_head(tmp_path: Path, suffix: str) -> None:
    tensors = base_tensors()
    del tensors["lm_head.weight"]
    if suffix == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")

    assert torch.equal(read_lm_head(str(tmp_path)), tensors["model.embed_tokens.weight"])


def test_shards_of_pickles_that_were_never_fetched_are_not_missed(tmp_path: Path) -> None:
    write_sharded(tmp_path, [base_tensors()], "bin")
    (tmp_path / "pytorch_model-00001-of-00001.bin").unlink()
    save_file(base_tensors(), tmp_path / "model.safetensors")

    assert loaded_index(tmp_path) is None
    assert torch.equal(read_lm_head(str(tmp_path)), LM_HEAD)

    (tmp_path / "model.safetensors").unlink()
    write_sharded(tmp_path, [base_tensors()], "safetensors")

    assert loaded_index(tmp_path) == tmp_path / "model.safetensors.index.json"
    assert torch.equal(read_lm_head(str(tmp_path)), LM_HEAD)


def test_of_a_hub_id_only_the_shard_of_the_lm_head_is_fetched(tmp_path: Path) -> None:
    remote, local, asked = tmp_path / "remote", tmp_path / "local", list[str]()
    remote.mkdir()
    local.mkdir()
    tensors = base_tensors()
    write_sharded(remote, [{"lm_head.weight": tensors.pop("lm_head.weight")}, tensors], "safetensors")

    def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
        for pattern in patterns:
            for file in remote.glob(pattern):
                asked.append(file.name)
                (local / file.name).write_bytes(file.read_bytes())
        return local

    assert torch.equal(read_lm_head("owner/name", download), LM_HEAD)
    assert asked == ["model.safetensors.index.json", "model-00001-of-00002.safetensors"]


def test_a_hub_that_does_not_answer_is_said_in_one_line() -> None:
    def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
        raise OSError("offline\nand more")

    with pytest.raises(ModelNotFound, match="no model at 'owner/name': offline and more; give a folder or a hub id"):
        base_folder("owner/name", download)


def test_a_folder_without_weights_and_one_without_an_lm_head_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no weights of a base model"):
        read_lm_head(str(tmp_path))
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(HeadsMismatch, match="no LM head among the tensors"):
        read_lm_head(str(tmp_path))


def test_a_quantised_lm_head_is_refused(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.ones(2, 2, dtype=torch.int8)}, tmp_path / "model.safetensors")

    with pytest.raises(HeadsMismatch, match="is quantised or no matrix"):
        read_lm_head(str(tmp_path))


def test_the_vocabulary_is_what_the_config_says_also_of_the_text_part(tmp_path: Path) -> None:
    assert vocab_size_of(str(tmp_path)) is None
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 40}))
    assert vocab_size_of(str(tmp_path)) == 40
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 50}}))
    assert vocab_size_of(str(tmp_path)) == 50
