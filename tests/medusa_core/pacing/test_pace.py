from medusa_core.pacing import FixedPace


def test_a_fixed_pace_learns_nothing() -> None:
    pace = FixedPace(8)
    for _ in range(100):
        pace.observe(8, [], [5])

    assert pace.choose(past=1000) == 8
