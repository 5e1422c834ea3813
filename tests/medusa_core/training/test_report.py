import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medusa_core.calibration import Calibration, LatencyCurve, Place
from medusa_core.errors import CheckpointError
from medusa_core.training.measure import Calibrated
from medusa_core.training.plan import JointPlan, TrainPlan
from medusa_core.training.report import DataFacts, Report, draw_report, write_report
from medusa_core.training.scores import HeadScores

ACCURACIES = ((0.5, 0.2), (0.3, 0.1))
LOG: list[dict[str, Any]] = [
    {"stage": "heads", "step": step, "loss": 9.0 - step, "head_nats": [5.0 - step, 6.0 - step], "seconds": 0.5}
    for step in range(1, 4)
]
LOG.append({"stage": "heads", "step": 3, "evaluation": {"head_nats": [2.5, 3.5]}})
JOINT_LOG = [{"stage": "joint", "step": 1, "own": 0.1, "heads": 3.0, "head_nats": [1.5, 2.5], "seconds": 1.0}]
REPORT = Report(
    "base",
    "base",
    TrainPlan(),
    None,
    DataFacts("answers.jsonl", 90, 10, 5000, 12),
    LOG,
    HeadScores((2.5, 3.5), ACCURACIES, (100, 90)),
    None,
    None,
)
CURVE = LatencyCurve(Place("a card", "bfloat16", None, "none"), 256, {1: 0.010, 8: 0.011})
SPEED = Calibrated(
    Calibration(ACCURACIES, (100, 90), (1.0, 1.0), (CURVE,), {}, {1: 1.0, 8: 2.2}), Path("c"), CURVE, 8, 0
)


def written(report: Report, folder: Path) -> dict[str, Any]:
    write_report(report, folder)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_a_report_holds_plan_data_scores_and_machine(tmp_path: Path) -> None:
    found = written(REPORT, tmp_path)

    assert (found["recipe"], found["steps"], found["seconds"]) == ("medusa1", 3, 1.5)
    assert found["data"] == {
        "file": "answers.jsonl", "examples": 90, "held_out_examples": 10, "tokens": 5000, "rows": 12,
    }  # fmt: skip
    assert found["plan"]["num_heads"] == 4
    assert found["held_out"]["top_2"] == pytest.approx([0.7, 0.4])
    assert found["held_out"]["samples"] == [100, 90]
    assert found["machine"]["torch"]
    assert (found["perplexity"], found["speed"], found["joint"]) == (None, None, None)


def test_a_report_of_medusa2_tells_what_became_of_the_base(tmp_path: Path) -> None:
    found = written(replace(REPORT, joint=JointPlan(), perplexity=(8.0, 8.04), log=[*LOG, *JOINT_LOG]), tmp_path)

    assert found["recipe"] == "medusa2"
    assert found["perplexity"] == {"before": 8.0, "after": 8.04, "change_percent": pytest.approx(0.5)}
    assert found["steps"] == 4


def test_measured_speed_is_told_by_nodes_with_its_place(tmp_path: Path) -> None:
    found = written(replace(REPORT, speed=SPEED), tmp_path)["speed"]

    assert found["place"]["device"] == "a card"
    assert found["fastest_nodes"] == 8
    assert found["tokens_per_step"] == {"1": 1.0, "8": 2.2}
    assert found["speed_up"]["8"] == pytest.approx(2.0)


def test_there_is_a_picture_of_every_stage_and_of_what_was_measured(tmp_path: Path) -> None:
    draw_report(replace(REPORT, speed=SPEED, log=[*LOG, *JOINT_LOG]), tmp_path)

    names = {"loss_heads.png", "loss_joint.png", "accuracy.png", "tree.png", "speed.png", "latency.png"}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "report.json.partial").symlink_to("/dev/full")

    with pytest.raises(CheckpointError, match="make room"):
        write_report(REPORT, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_the_log_is_kept_beside_the_report(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path)

    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == LOG
