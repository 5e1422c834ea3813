import dataclasses

import pytest

from medusa_core.runners import StepResult


def test_a_step_result_cannot_be_edited_after_the_step() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        StepResult([1], {}, [], 1, [], [], None, {}).drafted = {}  # type: ignore[misc]
