import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medusa_core.checkpoints.files import cached_snapshot, from_hub, open_file, open_folder, read_json
from medusa_core.checkpoints.layouts import head_keys
from medusa_core.errors import CheckpointError
from tests.medusa_core.checkpoints.public import base_tensors, layout_c, state_dict, write_sharded


def test_of_a_checkpoint_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    write_sharded(tmp_path, [{"a": torch.ones(2)}, {"b": torch.zeros(3)}], "safetensors")
    stored = open_file(tmp_path / "model.safetensors.index.json")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()

    assert set(stored.files) == {"a", "b"}
    assert stored.read(["a"])["a"].tolist() == [1.0, 1.0]


def test_an_index_that_lies_about_a_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, [{"a": torch.ones(2)}], "bin")
    torch.save({"c": torch.ones(1)}, tmp_path / "pytorch_model-00001-of-00001.bin")

    with pytest.raises(CheckpointError, match="the index says that 'a' is in"):
        open_file(tmp_path / "pytorch_model.bin.index.json").read(["a"])


def test_an_index_without_a_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")

    with pytest.raises(CheckpointError, match="no 'weight_map'"):
        open_folder(tmp_path, head_keys)


@pytest.mark.parametrize("name", ["../elsewhere/model.safetensors", "/elsewhere/model.safetensors"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"medusa_head.0.0.linear.weight": name}}))

    with pytest.raises(CheckpointError, match="which is outside of its folder"):
        open_file(index)


def test_safetensors_are_read_where_the_pickles_of_the_same_index_were_never_fetched(tmp_path: Path) -> None:
    layout_c(tmp_path, "bin")
    for shard in tmp_path.glob("*.bin"):
        shard.unlink()
    layout_c(tmp_path)

    found = open_folder(tmp_path, head_keys)

    assert found is not None and found.path.name == "model.safetensors.index.json"


def test_a_stale_form_of_a_base_models_weights_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(base_tensors(), tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "search.index.json").write_text("[]")

    assert open_folder(tmp_path, head_keys) is None
    assert "passed over in the search for heads" in caplog.text

    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_folder(tmp_path, head_keys)


def test_of_a_hub_id_the_shards_of_one_index_are_fetched(tmp_path: Path) -> None:
    layout_c(tmp_path, "bin")
    layout_c(tmp_path)
    asked: list[Sequence[str]] = []

    def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
        asked.append(patterns)
        return tmp_path

    from_hub("owner/name", head_keys, download)

    assert asked[-1] == ["model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]


@pytest.mark.parametrize(
    ("kept", "left"),
    [("medusa_lm_head.safetensors", "medusa_lm_head.pt"), ("model.safetensors", "pytorch_model.bin")],
)
def test_what_a_hub_id_holds_twice_is_fetched_once(tmp_path: Path, kept: str, left: str) -> None:
    remote, local = tmp_path / "remote", tmp_path / "local"
    remote.mkdir()
    local.mkdir()
    save_file(state_dict(2), remote / kept)
    torch.save(state_dict(2), remote / left)

    def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
        for file in [file for pattern in patterns for file in remote.glob(pattern)]:
            (local / file.name).write_bytes(file.read_bytes())
        return local

    folder = from_hub("owner/name", head_keys, download)

    assert [file.name for file in folder.iterdir()] == [kept]


def test_a_file_named_after_heads_goes_before_a_full_models(tmp_path: Path) -> None:
    layout_c(tmp_path)
    save_file(state_dict(2), tmp_path / "medusa_lm_head.safetensors")

    found = open_folder(tmp_path, head_keys)

    assert found is not None and found.path.name == "medusa_lm_head.safetensors"
    assert found.folder == tmp_path


def test_what_torch_wrote_long_ago_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(
        {**base_tensors(), "medusa_head.0.0.linear.weight": torch.ones(2, 2)},
        path,
        _use_new_zipfile_serialization=False,
    )

    found = open_folder(tmp_path, head_keys)

    assert found is not None
    assert found.read(["medusa_head.0.0.linear.weight"])["medusa_head.0.0.linear.weight"].shape == (2, 2)


def test_a_pickle_of_something_else_than_tensors_by_name_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "heads.pt")

    with pytest.raises(CheckpointError, match="not a state dict"):
        open_file(tmp_path / "heads.pt")


def test_json_that_is_none_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")

    with pytest.raises(CheckpointError, match=r"config\.json' cannot be read"):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        read_json(tmp_path / "list.json")
    assert read_json(tmp_path / "nowhere.json") == {}


def test_a_hub_id_is_found_in_the_cache_though_only_some_of_its_files_were_fetched(tmp_path: Path) -> None:
    repository, commit = tmp_path / "models--owner--name", "c" * 40
    files = {
        "refs/main": commit,
        f"snapshots/{commit}/config.json": "{}",
        # what there is on the hub, as its library notes it down
        f"trees/{commit}.json": json.dumps(
            {
                "format_version": 1,
                "files": {name: {"size": 2, "blob_id": "b" * 40} for name in ("README.md", "config.json")},
            }
        ),
    }
    for name, content in files.items():
        (repository / name).parent.mkdir(parents=True)
        (repository / name).write_text(content)

    assert cached_snapshot("owner/name", tmp_path) == repository / "snapshots" / commit


def test_what_was_never_fetched_is_not_in_the_cache() -> None:
    assert cached_snapshot("nobody/has-this") is None
    assert cached_snapshot("/no/hub/id/at/all") is None
