import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medusa_core.checkpoints import find_heads
from medusa_core.checkpoints.full_model import copy_with_heads
from medusa_core.errors import HeadsMismatch, ModelNotFound
from tests.cast import tiny_model
from tests.medusa_core.checkpoints.public import base_tensors, layout_c, write_sharded

HEADS = {"medusa_head.0.0.linear.weight": torch.ones(4, 4)}


def test_a_model_of_one_file_becomes_two_shards_that_transformers_loads(tmp_path: Path) -> None:
    model = tiny_model("llama")
    base, folder = tmp_path / "base", tmp_path / "full"
    model.save_pretrained(base)
    (base / "tokenizer.json").write_text("{}")
    folder.mkdir()

    copy_with_heads(base, folder, HEADS, {"medusa_num_heads": 1})

    again = type(model).from_pretrained(folder)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), again.parameters(), strict=True))
    assert find_heads(str(folder)) == folder
    assert json.loads((folder / "config.json").read_text())["medusa_num_heads"] == 1
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_keep_their_names_and_the_index_learns_of_one_more(tmp_path: Path, suffix: str) -> None:
    base, folder = tmp_path / "base", tmp_path / "full"
    base.mkdir()
    folder.mkdir()
    tensors = base_tensors()
    write_sharded(base, [dict(list(tensors.items())[:2]), dict(list(tensors.items())[2:])], suffix)

    copy_with_heads(base, folder, HEADS, {})

    (index,) = folder.glob("*.index.json")
    placed = json.loads(index.read_text())["weight_map"]
    assert placed.keys() == tensors.keys() | HEADS.keys()
    assert placed["medusa_head.0.0.linear.weight"] == f"medusa_heads.{suffix}"
    assert {file.name for file in folder.iterdir()} >= set(placed.values())


def test_weights_in_other_forms_and_the_bases_card_stay_behind(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "full"
    base.mkdir()
    folder.mkdir()
    save_file(base_tensors(), base / "model.safetensors")
    for name in ("pytorch_model.bin", "README.md", "medusa_lm_head.pt"):
        (base / name).write_text("not this")

    copy_with_heads(base, folder, HEADS, {})

    copied = {file.name for file in folder.iterdir()}
    assert not copied & {"pytorch_model.bin", "README.md", "medusa_lm_head.pt"}
    assert load_file(folder / "medusa_heads.safetensors").keys() == HEADS.keys()


def test_a_base_that_carries_heads_already_is_refused(tmp_path: Path) -> None:
    layout_c(tmp_path)
    (tmp_path / "full").mkdir()
    with pytest.raises(HeadsMismatch, match="carries heads already, such as 'medusa_head"):
        copy_with_heads(tmp_path, tmp_path / "full", HEADS, {})


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no weights of a base model"):
        copy_with_heads(tmp_path, tmp_path, HEADS, {})
