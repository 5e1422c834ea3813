import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from medusa_core.errors import CheckpointError, ConfigurationError
from medusa_core.training.loop import LOG, STATE, LoopPlan, cosine, fit, read_log, steps_done
from medusa_core.training.workers import Alone

PLAN = LoopPlan("fitting", steps=10, gradient_norm=1.0, save_every=4, evaluate_every=None, patience=None)
ALONE = Alone(torch.device("cpu"))


class Killed(Exception):
    """The process ends in the middle."""


class Line:
    """Fits a straight line, a point a step; what is measured may be told beforehand."""

    def __init__(self, measured: Sequence[float] = (), dies_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.line = nn.Linear(1, 1)
        self._optimizer = torch.optim.AdamW(self.line.parameters(), lr=0.1)
        self._measured, self._dies_at = list(measured), dies_at

    def modules(self) -> Mapping[str, nn.Module]:
        return {"line": self.line}

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return (self._optimizer,)

    def rate(self, step: int) -> float:
        return cosine(step, PLAN.steps, 2)

    def accumulate(self, step: int) -> Mapping[str, float | list[float]]:
        if step == self._dies_at:
            raise Killed
        x = torch.tensor([[float(step % 3)]])
        loss = (self.line(x) - (2.0 * x + 1.0)).square().mean()
        loss.backward()
        return {"loss": float(loss.detach())}

    def evaluate(self) -> Mapping[str, float | list[float]]:
        return {"held_out_loss": self._measured.pop(0) if self._measured else 0.0, "top_1": [0.5, 0.25]}


def weights(recipe: Line) -> list[float]:
    return [float(value) for parameter in recipe.line.parameters() for value in parameter.detach().flatten()]


def test_a_killed_run_ends_where_an_undisturbed_one_does_and_leaves_the_same_log(tmp_path: Path) -> None:
    undisturbed, resumed = Line(), Line()
    fit(undisturbed, PLAN, tmp_path / "a", "run", ALONE)
    with pytest.raises(Killed):
        fit(Line(dies_at=6), PLAN, tmp_path / "b", "run", ALONE)
    assert steps_done(tmp_path / "b") == 4
    assert len(read_log(tmp_path / "b")) == 6

    fit(resumed, PLAN, tmp_path / "b", "run", ALONE)

    assert weights(resumed) == weights(undisturbed)
    logs = [[(line["step"], line.get("loss")) for line in read_log(tmp_path / name)] for name in ("a", "b")]
    assert logs[0] == logs[1]


def test_where_steps_are_slow_the_state_is_saved_by_the_clock(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(Line(dies_at=3), replace(PLAN, save_every=1000, save_after_s=0.0), tmp_path / "a", "run", ALONE)
    with pytest.raises(Killed):
        fit(Line(dies_at=3), replace(PLAN, save_every=1000, save_after_s=3600.0), tmp_path / "b", "run", ALONE)

    assert (steps_done(tmp_path / "a"), steps_done(tmp_path / "b")) == (3, 0)


def test_a_run_that_is_done_does_nothing_more(tmp_path: Path) -> None:
    fit(Line(), PLAN, tmp_path, "run", ALONE)
    again = Line(dies_at=0)

    fit(again, PLAN, tmp_path, "run", ALONE)

    assert steps_done(tmp_path) == 10


def test_another_run_does_not_go_on_from_this_one(tmp_path: Path) -> None:
    fit(Line(), PLAN, tmp_path, "run", ALONE)

    with pytest.raises(ConfigurationError, match="another plan or other data"):
        fit(Line(), PLAN, tmp_path, "other", ALONE)


class Elsewhere(Alone):
    """A second process; the first has done three steps, and measures a loss of three."""

    rank, count = 1, 2

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 3.0 if tensor.dtype == torch.float64 else tensor


def test_processes_that_do_not_share_a_disk_do_not_train_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="on a disk that all of them share"):
        fit(Line(), PLAN, tmp_path, "run", Elsewhere(torch.device("cpu")))


@pytest.mark.parametrize("left", [0, 100, None], ids=["empty", "cut", "zeros"])
def test_a_damaged_state_is_named_with_the_way_out(tmp_path: Path, left: int | None) -> None:
    fit(Line(), PLAN, tmp_path, "run", ALONE)
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:left] if left is not None else bytes(200))

    with pytest.raises(CheckpointError, match="delete it to start anew"):
        fit(Line(), PLAN, tmp_path, "run", ALONE)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigurationError, match="name another folder"):
        fit(Line(), PLAN, tmp_path / "file" / "folder", "run", ALONE)


def test_a_full_disk_leaves_the_state_before_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(Line(dies_at=6), PLAN, tmp_path, "run", ALONE)
    (tmp_path / f"{STATE}.partial").symlink_to("/dev/full")

    with pytest.raises(CheckpointError, match="make room"):
        fit(Line(), PLAN, tmp_path, "run", ALONE)
    assert steps_done(tmp_path) == 4


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / LOG).symlink_to(tmp_path / "nowhere" / LOG)

    with pytest.raises(CheckpointError, match="make room"):
        fit(Line(), PLAN, tmp_path, "run", ALONE)


def test_a_run_without_progress_ends_early_with_its_best_parameters(tmp_path: Path) -> None:
    plan = replace(PLAN, evaluate_every=2, patience=2, save_every=100)
    best, short = Line(), Line(measured=[3.0, 1.0, 2.0, 2.5, 0.1])
    fit(best, replace(plan, patience=None, steps=4), tmp_path / "a", "run", ALONE)

    fit(short, plan, tmp_path / "b", "run", ALONE)

    assert steps_done(tmp_path / "b") == 8
    assert weights(short) == weights(best)


def test_early_stopping_survives_an_interruption(tmp_path: Path) -> None:
    plan = replace(PLAN, evaluate_every=2, patience=3, save_every=2)
    whole, resumed = Line(measured=[3.0, 1.0, 2.0, 2.5, 2.0]), Line(measured=[2.0, 2.5, 2.0])
    fit(whole, plan, tmp_path / "a", "run", ALONE)
    with pytest.raises(Killed):
        fit(Line(measured=[3.0, 1.0], dies_at=4), plan, tmp_path / "b", "run", ALONE)

    fit(resumed, plan, tmp_path / "b", "run", ALONE)

    assert weights(resumed) == weights(whole)


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    class Diverging(Line):
        def accumulate(self, step: int) -> Mapping[str, float | list[float]]:
            losses = super().accumulate(step)
            return losses if step < 2 else {"loss": math.nan}

    with pytest.raises(ConfigurationError, match="loss is nan at step 3; lower the learning rate"):
        fit(Diverging(), PLAN, tmp_path, "run", ALONE)
    assert steps_done(tmp_path) == 0


def test_the_log_holds_losses_rates_and_measurements(tmp_path: Path) -> None:
    fit(Line(), replace(PLAN, evaluate_every=5), tmp_path, "run", ALONE)

    lines = read_log(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))
    assert [line["step"] for line in lines if "evaluation" in line] == [5, 10]
    assert lines[0]["rate"] == 0.5
    assert json.loads(json.dumps(lines)) == lines


def test_processes_that_do_not_lead_write_nothing(tmp_path: Path) -> None:
    class Follower(Alone):
        rank = 1

    fit(Line(), PLAN, tmp_path, "run", Follower(torch.device("cpu")))

    assert list(tmp_path.iterdir()) == []


def test_the_rate_rises_falls_and_ends_at_nothing() -> None:
    rates = [cosine(step, 100, 10) for step in range(101)]

    assert rates[9] == 1.0
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.0)
