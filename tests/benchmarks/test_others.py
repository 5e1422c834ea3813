import pytest

from benchmarks.through_http.others import busy_cores, cores_between

BEFORE = "cpu  100 0 100 1000 50 0 0 0 0 0\ncpu0 1 2 3"


def test_cores_in_use_are_what_was_not_idle() -> None:
    after = "cpu  150 0 150 1080 70 0 0 0 0 0\ncpu0 1 2 3"

    assert cores_between(BEFORE, after, cores=4) == pytest.approx(2.0)
    assert cores_between(BEFORE, BEFORE, cores=4) == 0.0


def test_a_machine_has_no_more_cores_in_use_than_it_has() -> None:
    found = busy_cores(0.05)

    assert found is None or found >= 0.0
