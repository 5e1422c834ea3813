import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medusa_core.checkpoints import load_heads, save_heads
from medusa_core.checkpoints.layouts import LAYOUTS, LMHeadKind
from medusa_core.checkpoints.reading import open_heads, read_heads
from medusa_core.config import HeadsConfig
from medusa_core.errors import CheckpointError, ConfigurationError, HeadsMismatch
from medusa_core.heads import DraftHeads
from tests.medusa_core.checkpoints.public import HIDDEN, LM_HEAD, VOCAB, base_tensors, write_sharded

ROW = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))
IDS = torch.tensor([5, 39, 2, 17])


def made(kind: LMHeadKind, layers: int = 1, token_ids: torch.Tensor | None = None) -> DraftHeads:
    """Heads of one kind with random weights."""
    rows = LM_HEAD[token_ids] if token_ids is not None else LM_HEAD
    config = HeadsConfig(
        3, layers, HIDDEN, len(rows), kind in ("shared", "low-rank"), 2 if kind == "low-rank" else None, kind == "one"
    )
    heads = DraftHeads(config, rows, token_ids).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in heads.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return heads


def base_folder(folder: Path) -> Path:
    folder.mkdir()
    write_sharded(folder, [base_tensors()], "safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": HIDDEN, "vocab_size": VOCAB}))
    return folder


def same(first: DraftHeads, second: DraftHeads) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


HELD = [
    (name, kind, layers)
    for name, layout in LAYOUTS.items()
    for kind in sorted(layout.holds)
    for layers in (1, 2)
    if not (kind == "shared" and layout.shared_depth == 1 and layers == 2)
]


@pytest.mark.parametrize(("name", "kind", "layers"), HELD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_come_back_bit_for_bit_from_every_layout_that_has_a_place_for_them(
    tmp_path: Path, name: str, kind: LMHeadKind, layers: int, dtype: torch.dtype
) -> None:
    heads = made(kind, layers).to(dtype)
    save_heads(tmp_path / "heads", heads, "some/base", name, base_folder(tmp_path / "base"))

    loaded = load_heads(tmp_path / "heads", LM_HEAD.to(dtype))

    assert loaded.config == heads.config
    assert same(loaded, heads)


TRUNCATED = [(name, kind) for name, layout in LAYOUTS.items() if layout.truncated for kind in sorted(layout.holds)]


@pytest.mark.parametrize(("name", "kind"), TRUNCATED)
def test_a_truncated_vocabulary_comes_back_with_its_tokens(tmp_path: Path, name: str, kind: LMHeadKind) -> None:
    heads = made(kind, token_ids=IDS)
    save_heads(tmp_path, heads, "some/base", name, base_vocab_size=VOCAB)

    loaded = load_heads(tmp_path, LM_HEAD)

    assert loaded.token_ids is not None and loaded.token_ids.tolist() == IDS.tolist()
    assert same(loaded, heads)
    assert torch.equal(loaded(ROW), heads(ROW))


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if not layout.truncated])
def test_a_layout_without_a_token_map_refuses_a_truncated_vocabulary(tmp_path: Path, name: str) -> None:
    with pytest.raises(HeadsMismatch, match=r"no place for a truncated vocabulary.*use medusa, vllm"):
        save_heads(tmp_path, made("own", token_ids=IDS), "some/base", name)


WIDENED = [
    (name, kind)
    for name, layout in LAYOUTS.items()
    for kind in ("shared", "low-rank", "one")
    if kind not in layout.holds and "own" in layout.holds
]


@pytest.mark.parametrize(("name", "kind"), WIDENED)
def test_what_a_layout_has_no_place_for_is_written_out_as_whole_lm_heads(
    tmp_path: Path, name: str, kind: LMHeadKind
) -> None:
    heads = made(kind)
    save_heads(tmp_path / "heads", heads, "some/base", name, base_folder(tmp_path / "base"))

    loaded = load_heads(tmp_path / "heads", LM_HEAD)

    assert torch.allclose(loaded(ROW), heads(ROW), atol=1e-4)


@pytest.mark.parametrize("kind", ["shared", "low-rank"])
def test_without_the_bases_lm_head_nothing_can_be_written_out(tmp_path: Path, kind: LMHeadKind) -> None:
    config = HeadsConfig(3, 1, HIDDEN, VOCAB, True, 2 if kind == "low-rank" else None)

    with pytest.raises(ConfigurationError, match="name the base with --model"):
        save_heads(tmp_path, DraftHeads(config), "some/base", "medusa-v1")


def test_own_lm_heads_do_not_fit_a_layout_without_any(tmp_path: Path) -> None:
    with pytest.raises(HeadsMismatch, match=r"medusa-v2 has no place for LM heads, .* use medusa, medusa-v1"):
        save_heads(tmp_path, made("own"), "some/base", "medusa-v2")


def test_what_reads_shared_lm_heads_behind_one_block_only_is_given_no_more(tmp_path: Path) -> None:
    with pytest.raises(HeadsMismatch, match="only when they have 1 block, these have 2"):
        save_heads(tmp_path, made("shared", layers=2), "some/base", "tgi")


def test_an_unknown_layout_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="layout 'gguf' is unknown; use medusa, medusa-v1"):
        save_heads(tmp_path, made("own"), "some/base", "gguf")


def test_a_full_model_needs_the_folder_of_its_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="name the folder of the base model"):
        save_heads(tmp_path, made("own"), "some/base", "full")


@pytest.mark.parametrize("name", ["medusa", "medusa-v1", "vllm", "tensorrt-llm"])
def test_a_folder_gets_the_weights_and_the_config_and_nothing_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save_heads(tmp_path, made("own"), "some/base", name)

    assert {file.name for file in tmp_path.iterdir()} == {"notes.txt", "config.json", LAYOUTS[name].file}
    assert read_heads(open_heads(tmp_path)).config.num_heads == 3


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def test_our_config_says_what_the_heads_are(tmp_path: Path) -> None:
    save_heads(tmp_path, made("low-rank"), "some/base")

    assert config_of(tmp_path) == {
        "base_model_name_or_path": "some/base",
        "medusa_num_heads": 3,
        "medusa_num_layers": 1,
        "hidden_size": HIDDEN,
        "vocab_size": VOCAB,
        "lm_head_rank": 2,
        "version": "2",
    }


def test_vllm_is_told_of_an_lm_head_that_all_heads_share(tmp_path: Path) -> None:
    save_heads(tmp_path, made("one"), "some/base", "vllm")

    assert config_of(tmp_path)["original_lm_head"] is True
    assert "lm_head.weight" in open_heads(tmp_path).files


def test_vllm_is_told_of_the_biases_and_of_a_truncated_vocabulary(tmp_path: Path) -> None:
    save_heads(tmp_path, made("own", token_ids=IDS), "some/base", "vllm", base_vocab_size=VOCAB)

    config = config_of(tmp_path)
    assert (config["medusa_fc_bias"], config["original_lm_head"]) == (True, False)
    assert (config["vocab_size"], config["truncated_vocab_size"]) == (VOCAB, len(IDS))


@pytest.fixture
def little_room() -> Iterator[None]:
    """A disk on which a file may have 2 KB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["medusa", "medusa-v1"])
@pytest.mark.usefixtures("little_room")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write .*nothing was left there"):
        save_heads(tmp_path, made("own"), "some/base", name)

    assert list(tmp_path.iterdir()) == []
