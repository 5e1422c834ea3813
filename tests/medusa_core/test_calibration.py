import json
from itertools import product
from pathlib import Path

import pytest

from medusa_core.calibration import Calibration
from medusa_core.errors import CheckpointError

TWO_HEADS = Calibration(
    accuracies=((0.6, 0.2), (0.4, 0.1)), samples=(100, 99), temperatures=(1.3, 1.7), latency_s={16: 0.004, 1: 0.002}
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    TWO_HEADS.save(tmp_path / "calibration.json")

    assert Calibration.load(tmp_path / "calibration.json") == TWO_HEADS
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_the_latency_curve_may_be_missing(tmp_path: Path) -> None:
    Calibration(((0.5,),), (10,), (1.0,)).save(tmp_path / "calibration.json")

    assert Calibration.load(tmp_path / "calibration.json").latency_s is None


def test_an_unknown_field_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    TWO_HEADS.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "accuracy": []}))

    with pytest.raises(CheckpointError, match="unknown field 'accuracy'"):
        Calibration.load(path)


def test_a_missing_field_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text('{"accuracies": [[0.5]], "samples": [3]}')

    with pytest.raises(CheckpointError, match="lacks the field 'temperatures'"):
        Calibration.load(tmp_path / "calibration.json")


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"accuracies": 3, "samples": [1], "temperatures": [1]}',
        '{"accuracies": [[0.5]], "samples": [1], "temperatures": [1], "latency_s": [1]}',
        '{"accuracies": [[0.9, 0.9]], "samples": [1], "temperatures": [1]}',
        '{"accuracies": [[0.9]], "samples": [1], "temperatures": [0]}',
        '{"accuracies": [[0.9]], "samples": [1, 2], "temperatures": [1]}',
    ],
)
def test_a_malformed_file_is_a_checkpoint_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.json").write_text(content)

    with pytest.raises(CheckpointError):
        Calibration.load(tmp_path / "calibration.json")


def test_a_file_that_is_not_there_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Calibration.load(tmp_path / "calibration.json")


def test_a_root_alone_emits_one_token_per_step() -> None:
    assert TWO_HEADS.expected_tokens_per_step(1) == 1.0


@pytest.mark.parametrize("num_nodes", [2, 3, 4, 5, 6, 7])
def test_the_expected_length_is_that_of_the_best_tree(num_nodes: int) -> None:
    one, two = TWO_HEADS.accuracies
    values = sorted([*one, *(a * b for a, b in product(one, two))], reverse=True)  # a child never exceeds its parent

    assert TWO_HEADS.expected_tokens_per_step(num_nodes) == pytest.approx(1.0 + sum(values[: num_nodes - 1]))


def test_heads_that_are_never_right_are_no_reason_to_fail() -> None:
    assert Calibration(((0.0, 0.0),), (5,), (1.0,)).expected_tokens_per_step(64) == 1.0


def test_a_calibration_cannot_be_changed_through_its_latencies() -> None:
    with pytest.raises(TypeError):
        TWO_HEADS.latency_s[1] = 0.0  # type: ignore[index]
