import math

import pytest

from medusa_core.fusion.choosing import fastest


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [([1.0], 0), ([1.0, 0.97], 0), ([1.0, 0.9], 1), ([1.0, 0.9, 0.88], 1), ([2.0, 1.0, 0.5], 2), ([1.0, math.inf], 0)],
)
def test_an_earlier_way_is_kept_unless_a_later_one_is_clearly_faster(seconds: list[float], chosen: int) -> None:
    assert fastest(seconds) == chosen
