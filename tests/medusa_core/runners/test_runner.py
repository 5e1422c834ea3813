import dataclasses

import pytest
import torch

from medusa_core.errors import ConfigurationError
from medusa_core.runners import RUNNERS, EagerRunner, StepResult, choose_runner
from tests.cast import CPU


def test_a_step_result_cannot_be_edited_after_the_step() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        StepResult([1], {}, [], 1, [], [], None, {}).drafted = {}  # type: ignore[misc]


def test_steps_are_recorded_where_the_device_can_do_that() -> None:
    cuda = torch.device("cuda")

    assert choose_runner("auto", CPU) is EagerRunner
    assert choose_runner("auto", cuda) is RUNNERS["cuda_graph"]
    assert choose_runner("eager", cuda) is EagerRunner


def test_recording_on_a_device_that_cannot_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs a CUDA device and not cpu; take auto"):
        choose_runner("cuda_graph", CPU)
