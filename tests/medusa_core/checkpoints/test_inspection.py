from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medusa_core.calibration import Calibration
from medusa_core.checkpoints.inspection import base_named_by, inspect_heads
from medusa_core.checkpoints.reading import heads_location
from medusa_core.errors import HeadsMismatch
from tests.medusa_core.checkpoints.public import (
    HIDDEN,
    PUBLIC,
    RECOGNISED,
    VOCAB,
    as_vllm,
    layout_a,
    layout_b,
    layout_f2,
    state_dict,
)


def test_a_report_says_what_the_file_holds_and_where_the_config_is_wrong(tmp_path: Path) -> None:
    state = layout_a(tmp_path)
    report = inspect_heads(str(tmp_path))

    assert (report.layout, report.num_heads, report.num_layers, report.lm_head) == ("medusa-v1", 5, 1, "own")
    assert (report.hidden_size, report.vocab_size, report.truncated) == (HIDDEN, VOCAB, False)
    assert (report.dtype, report.bytes) == ("float32", sum(tensor.nbytes for tensor in state.values()))
    assert report.base_model == "lmsys/vicuna-7b-v1.3"
    assert report.false_claims == ("2 heads, the file holds 5",)
    assert report.accuracies is None


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_layout_can_be_inspected(tmp_path: Path, name: str) -> None:
    PUBLIC[name](tmp_path)

    assert inspect_heads(str(tmp_path)).layout == RECOGNISED[name]


def test_quantised_heads_are_said_to_be_and_counted_as_they_are_stored(tmp_path: Path) -> None:
    state = layout_f2(tmp_path)
    report = inspect_heads(str(tmp_path))

    assert report.is_quantized
    assert report.bytes < sum(tensor.nbytes for tensor in state.values()) / 2


def test_missing_biases_and_a_truncated_vocabulary_are_reported(tmp_path: Path) -> None:
    state = {key: value for key, value in state_dict(2, vocab=3).items() if not key.endswith("bias")}
    save_file({**as_vllm(state), "token_map": torch.tensor([5, 39, 2])}, tmp_path / "model.safetensors")

    report = inspect_heads(str(tmp_path))

    assert (report.vocab_size, report.truncated, report.has_biases) == (3, True, False)
    assert report.base_model is None


def test_a_calibration_beside_the_heads_gives_their_accuracies(tmp_path: Path) -> None:
    layout_b(tmp_path)
    shares = (0.5, 0.1, 0.05, 0.05, 0.05, 0.05)
    Calibration((shares,) * 3, (100, 90, 80), (1.0,) * 3).save(tmp_path / "calibration.json")

    report = inspect_heads(str(tmp_path))

    assert report.accuracies is not None
    assert [(head.top1, round(head.top5, 6), head.samples) for head in report.accuracies][1] == (0.5, 0.75, 90)
    assert replace(report, accuracies=None).lm_head == "shared"
    assert report.vocab_size is None


def test_a_model_that_carries_heads_is_as_good_a_source_as_their_own_folder(tmp_path: Path) -> None:
    (tmp_path / "heads").mkdir()
    layout_b(tmp_path / "heads")

    assert heads_location(str(tmp_path)) == str(tmp_path / "heads")
    assert inspect_heads("demo").num_heads == 4


def test_a_card_names_the_base_where_the_config_has_no_room_for_it(tmp_path: Path) -> None:
    assert base_named_by(tmp_path) is None
    (tmp_path / "README.md").write_text("---\ntags:\n- medusa\nbase_model: some/base\n---\nbase_model: wrong\n")
    assert base_named_by(tmp_path) == "some/base"
    (tmp_path / "README.md").write_text("no front matter\nbase_model: wrong\n")
    assert base_named_by(tmp_path) is None


def test_what_fits_no_layout_is_not_described(tmp_path: Path) -> None:
    save_file({"0.gate.weight": torch.ones(2)}, tmp_path / "medusa_lm_head.safetensors")

    with pytest.raises(HeadsMismatch):
        inspect_heads(str(tmp_path))
