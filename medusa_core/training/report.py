"""What a training run tells when it has ended: `report.json`, and pictures for whoever would rather look."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medusa_core.errors import CheckpointError
from medusa_core.evaluation.machine import machine
from medusa_core.pictures import loss_curves, save
from medusa_core.training.loop import LOG
from medusa_core.training.measure import Calibrated, draw_calibration
from medusa_core.training.medusa1 import evaluation
from medusa_core.training.plan import JointPlan, TrainPlan
from medusa_core.training.scores import HeadScores

__all__ = ["REPORT_FILE", "DataFacts", "Report", "draw_report", "write_report"]

REPORT_FILE = "report.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataFacts:
    """What was trained and measured on; tokens and rows are those that are trained on."""

    file: str
    examples: int
    held_out_examples: int
    tokens: int
    rows: int


@dataclass(frozen=True)
class Report:
    """One run.

    model:      the base model; `served_with` is what its heads go with, another one where an adapter was merged.
    scores:     of the heads on held-out text.
    perplexity: of the base on held-out text, before and after; None when the base was not trained.
    speed:      as measured through the engine; None where nobody measured it.
    """

    model: str
    served_with: str
    plan: TrainPlan
    joint: JointPlan | None
    data: DataFacts
    log: Sequence[Mapping[str, Any]] = field(repr=False)
    scores: HeadScores
    perplexity: tuple[float, float] | None
    speed: Calibrated | None

    @property
    def perplexity_change_percent(self) -> float | None:
        """How much worse the base became; below 0 it became better."""
        return None if self.perplexity is None else 100.0 * (self.perplexity[1] / self.perplexity[0] - 1.0)

    def as_json(self) -> dict[str, Any]:
        """Everything but the log, which stands beside it, a line for each step and measurement."""
        perplexity, speed = None, None
        if self.perplexity is not None:
            before, after = self.perplexity
            perplexity = {"before": before, "after": after, "change_percent": self.perplexity_change_percent}
        if self.speed is not None:
            curve, calibration = self.speed.curve, self.speed.calibration
            speed = {
                "place": asdict(curve.place),
                "fastest_nodes": self.speed.nodes,
                "tokens_per_step": {str(nodes): calibration.tokens_at(nodes) for nodes in sorted(curve.seconds)},
                "step_seconds": {str(nodes): seconds for nodes, seconds in sorted(curve.seconds.items())},
                "speed_up": {str(nodes): self.speed.speed_up(nodes) for nodes in sorted(curve.seconds)},
            }
        return {
            "recipe": "medusa1" if self.joint is None else "medusa2",
            "model": self.model,
            "served_with": self.served_with,
            "data": asdict(self.data),
            "plan": asdict(self.plan),
            "joint": None if self.joint is None else asdict(self.joint),
            "steps": sum("loss" in line or "own" in line for line in self.log),
            "seconds": round(sum(line["seconds"] for line in self.log if "seconds" in line), 1),
            "held_out": {**evaluation(self.scores, self.plan.decay), "samples": list(self.scores.samples)},
            "perplexity": perplexity,
            "speed": speed,
            "machine": machine(),
        }


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json`, the log and, where matplotlib is installed, the pictures; each is whole or not there."""
    _write(folder / LOG, "".join(json.dumps(line) + "\n" for line in report.log))
    _write(folder / REPORT_FILE, json.dumps(report.as_json(), indent=2) + "\n")
    if find_spec("matplotlib") is None:
        _log.warning("no pictures: they need matplotlib; pip install 'medusa-server[train]'")
        return
    draw_report(report, folder)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror}; make room") from error


def draw_report(report: Report, folder: Path) -> None:
    """Loss curves of each stage; and of a run whose speed was measured the accuracies, the best tree and the speed."""
    for stage in dict.fromkeys(line["stage"] for line in report.log):
        lines = [line for line in report.log if line["stage"] == stage]
        trained = {line["step"]: line["head_nats"] for line in lines if "head_nats" in line}
        held_out = {line["step"]: line["evaluation"]["head_nats"] for line in lines if "evaluation" in line}
        title = {"heads": "Loss of each head, base frozen", "joint": "Loss of each head, base trained too"}[stage]
        save(loss_curves(trained, held_out, title), folder / f"loss_{stage}.png")
    if report.speed is not None:
        draw_calibration(report.speed, report.model, folder)
