import json
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from medusa_core.calibration import Calibration
from medusa_core.checkpoints import load_heads, save_heads
from medusa_core.checkpoints.conversion import convert_heads
from medusa_core.checkpoints.inspection import inspect_heads
from medusa_core.config import HeadsConfig
from medusa_core.errors import CheckpointError, ConfigurationError, HeadsMismatch, MedusaError, ModelNotFound
from medusa_core.heads import DraftHeads
from tests.medusa_core.checkpoints.public import (
    HIDDEN,
    LM_HEAD,
    PUBLIC,
    VOCAB,
    base_tensors,
    layout_a,
    layout_b,
    layout_c,
    layout_f2,
    write_sharded,
)

ROW = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def base(tmp_path: Path) -> str:
    folder = tmp_path / "base"
    folder.mkdir()
    write_sharded(folder, [base_tensors()], "safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": HIDDEN, "vocab_size": VOCAB}))
    (folder / "tokenizer.json").write_text("{}")
    return str(folder)


@pytest.mark.parametrize("layout", ["medusa", "medusa-v1", "full", "tgi", "vllm", "tensorrt-llm", "modelopt"])
@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_layout_becomes_any_other_and_drafts_the_same(
    tmp_path: Path, base: str, name: str, layout: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    PUBLIC[name](source)

    convert_heads(str(source), target, layout, base)

    first, second = load_heads(source, LM_HEAD), load_heads(target, LM_HEAD)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert torch.allclose(first(ROW), second(ROW), atol=1e-5)
    assert not list(tmp_path.glob(".*"))


def test_there_and_back_again_gives_the_same_bytes(tmp_path: Path) -> None:
    state = layout_a(tmp_path)
    names = ["vllm", "tensorrt-llm", "tgi", "medusa", "medusa-v1"]
    place = tmp_path
    for number, layout in enumerate(names):
        convert_heads(str(place), tmp_path / str(number), layout, "lmsys/vicuna-7b-v1.3")
        place = tmp_path / str(number)

    loaded = torch.load(place / "medusa_lm_head.pt", weights_only=True)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_shared_heads_stay_shared_without_a_base_where_the_layout_has_a_place_for_them(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    layout_b(source)

    convert_heads(str(source), target, "tgi")

    config = json.loads((target / "config.json").read_text())
    assert config["base_model_name_or_path"] == "lmsys/vicuna-7b-v1.3"
    assert inspect_heads(str(target)).lm_head == "shared"


def test_low_rank_heads_are_written_out_for_engines_that_know_none(tmp_path: Path, base: str) -> None:
    heads = DraftHeads(HeadsConfig(2, 1, HIDDEN, VOCAB, True, 3), LM_HEAD).requires_grad_(False)
    assert heads.up is not None
    heads.up.copy_(torch.randn(heads.up.shape, generator=torch.Generator().manual_seed(1)))
    save_heads(tmp_path / "source", heads, "some/base")

    convert_heads(str(tmp_path / "source"), tmp_path / "target", "medusa-v1", base)

    loaded = load_heads(tmp_path / "target", LM_HEAD)
    assert not loaded.config.shared_lm_head
    assert torch.allclose(loaded(ROW), heads(ROW), atol=1e-4)


def test_a_truncated_vocabulary_keeps_its_map_on_the_way_to_vllm(tmp_path: Path, base: str) -> None:
    heads = DraftHeads.from_base(LM_HEAD, 2, token_ids=torch.tensor([5, 39, 2]))
    save_heads(tmp_path / "source", heads, "some/base")
    (tmp_path / "source" / "config.json").unlink()

    convert_heads(str(tmp_path / "source"), tmp_path / "target", "vllm", base)

    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert (config["vocab_size"], config["truncated_vocab_size"]) == (VOCAB, 3)
    assert load_heads(tmp_path / "target", LM_HEAD).as_tokens(torch.arange(3)).tolist() == [5, 39, 2]


def test_a_calibration_goes_along_and_into_the_card(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    layout_b(source)
    Calibration(((0.5, 0.1),) * 3, (100,) * 3, (1.0,) * 3).save(source / "calibration.json")

    convert_heads(str(source), target, "medusa")

    assert (target / "calibration.json").read_bytes() == (source / "calibration.json").read_bytes()
    assert "| 1 | 2 | 0.500 | 0.600 |" in (target / "README.md").read_text()


def test_an_adapter_goes_along_and_into_no_full_model(tmp_path: Path, base: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "adapter").mkdir(parents=True)
    layout_b(source)
    (source / "adapter" / "adapter_config.json").write_text("{}")

    convert_heads(str(source), target, "vllm", base)

    assert (target / "adapter" / "adapter_config.json").is_file()
    assert inspect_heads(str(source)).has_adapter
    refused(source, tmp_path / "other", "full", base, HeadsMismatch, "merge it first")


def test_heads_of_the_second_kind_bring_the_bases_tokenizer(tmp_path: Path, base: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    layout_b(source)

    convert_heads(str(source), target, "medusa-v2", base)

    assert (target / "tokenizer.json").is_file()


def test_the_tokenizer_of_a_base_on_a_hub_is_fetched(tmp_path: Path, base: str) -> None:
    source, target, local = tmp_path / "source", tmp_path / "target", tmp_path / "local"
    source.mkdir()
    local.mkdir()
    layout_b(source)

    def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
        for file in [file for pattern in patterns for file in Path(base).glob(pattern)]:
            (local / file.name).write_bytes(file.read_bytes())
        return local

    convert_heads(str(source), target, "medusa-v2", "owner/base", download)

    assert (target / "tokenizer.json").is_file()
    assert not (local / "model.safetensors").exists()


def test_what_was_written_can_be_read_by_others_than_its_writer(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    layout_a(tmp_path / "source")
    convert_heads(str(tmp_path / "source"), tmp_path / "target", "vllm", "some/base")

    modes = {(tmp_path / "target" / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def refused(source: Path, target: Path, layout: str, base: str | None, error: type[MedusaError], reason: str) -> None:
    beside = set(target.parent.iterdir())
    with pytest.raises(error, match=reason):
        convert_heads(str(source), target, layout, base)
    assert set(target.parent.iterdir()) == beside


def test_wrong_input_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    shared, own, target = tmp_path / "shared", tmp_path / "own", tmp_path / "target"
    shared.mkdir()
    own.mkdir()
    layout_b(shared)
    layout_a(own)

    refused(shared, target, "gguf", None, ConfigurationError, "layout 'gguf' is unknown")
    refused(shared, own, "medusa", None, ConfigurationError, "exists and is not an empty folder")
    refused(shared, target, "vllm", None, ConfigurationError, "name the base with --model")
    refused(shared, target, "medusa-v1", None, ConfigurationError, "name the base with --model")
    refused(own, target, "full", None, ConfigurationError, "name with --model the base whose files")
    refused(own, target, "full", str(own), ModelNotFound, "no weights of a base model")
    refused(own, target, "medusa-v2", None, HeadsMismatch, "no place for LM heads")
    refused(tmp_path / "nowhere", target, "medusa", None, ModelNotFound, "there is no")


def test_a_layout_that_names_the_base_is_not_written_without_the_name(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    layout_f2(tmp_path / "source")

    refused(
        tmp_path / "source", tmp_path / "target", "medusa-v1", None, ConfigurationError, "say which it is with --model"
    )


def test_a_base_whose_shards_are_missing_is_refused(tmp_path: Path, base: str) -> None:
    (tmp_path / "source").mkdir()
    layout_c(tmp_path / "source")
    next(Path(base).glob("*.safetensors")).unlink()

    refused(tmp_path / "source", tmp_path / "target", "full", base, HeadsMismatch, "are not all here")


def test_an_empty_folder_is_taken_and_a_torn_run_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    layout_b(source)
    (tmp_path / ".target.partial").mkdir()
    (tmp_path / ".target.partial" / "half").write_text("")

    convert_heads(str(source), target, "medusa")

    assert {file.name for file in target.iterdir()} == {"README.md", "config.json", "medusa_lm_head.safetensors"}
    assert not (tmp_path / ".target.partial").exists()


@pytest.fixture
def little_room() -> Iterator[None]:
    """A disk on which a file may have 4 KB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("little_room")
def test_a_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    refused(
        Path("demo"), tmp_path / "target", "medusa", None, CheckpointError, "cannot write .*; nothing was left there"
    )


def test_a_folder_that_cannot_be_made_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointError, match="cannot write"):
        convert_heads("demo", tmp_path / "file" / "target", "medusa")
