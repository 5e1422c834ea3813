from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from medusa_core.runners.recording import Recording
from tests.medusa_core.runners.cast import TapeLauncher


@dataclass(frozen=True)
class Sum:
    total: Tensor
    name: str


def test_work_is_done_the_ordinary_way_before_it_is_recorded() -> None:
    launcher, number = TapeLauncher(), torch.zeros(1)
    recording = Recording(launcher, lambda: Sum(number.add_(1) * 10, "n"), "counting")
    totals = [float(recording.run().total) for _ in range(6)]

    assert totals == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    assert launcher.log == ["warm up"] * 3 + ["capture"] + ["replay"] * 3


def test_the_outcome_always_lies_in_the_same_place() -> None:
    number = torch.zeros(1)
    recording = Recording(TapeLauncher(), lambda: Sum(number.add_(1) + 0, "n"), "counting")
    places = {recording.run().total.data_ptr() for _ in range(6)}

    assert len(places) == 1
    assert float(recording.outcome.total) == 6.0


def test_work_that_waits_for_the_device_is_named_and_never_recorded(caplog: pytest.LogCaptureFixture) -> None:
    launcher, number = TapeLauncher(), torch.zeros(1)

    def work() -> Sum:
        return Sum(number.add_(1) + float(number), "n")

    recording = Recording(launcher, work, "counting")
    for _ in range(6):
        recording.run()

    assert launcher.log == ["warm up"] * 6
    assert "counting is not recorded" in caplog.text
