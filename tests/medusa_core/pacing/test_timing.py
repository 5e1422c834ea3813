from collections.abc import Iterator

from medusa_core.pacing import TimingPlan, time_steps
from tests.medusa_core.pacing.cast import PLACE

SIZES = (1, 2, 4, 8, 16, 32)


class Machine:
    """Steps that take what a formula says, on a clock that only they move."""

    def __init__(self, plain_s: float) -> None:
        self._plain_s = plain_s
        self.now, self.visited = 0.0, list[tuple[int, int]]()

    def visit(self, nodes: int, rows: int) -> Iterator[float]:
        self.visited.append((nodes, rows))
        seconds = 5 * self.step(nodes, rows)  # the first one is slow
        while True:
            self.now += seconds
            yield seconds
            seconds = self.step(nodes, rows)

    def step(self, nodes: int, rows: int) -> float:
        return self._plain_s * (1 + nodes / 20 + rows / 10_000)

    def clock(self) -> float:
        return self.now


def test_steps_are_timed_at_each_size_and_context_without_the_first_of_a_visit() -> None:
    machine = Machine(0.002)
    curves = time_steps(machine.visit, PLACE, TimingPlan(SIZES, (256, 2000)), 0.002, machine.clock)

    assert [(curve.place, curve.context) for curve in curves] == [(PLACE, 256), (PLACE, 2000)]
    for curve in curves:
        assert curve.seconds == {size: machine.step(size, curve.context) for size in SIZES}


def test_visits_are_interleaved_and_end_in_time() -> None:
    machine = Machine(0.01)
    time_steps(machine.visit, PLACE, TimingPlan(SIZES, (256, 2000)), 0.01, machine.clock)
    once = [(size, rows) for rows in (256, 2000) for size in SIZES]

    assert machine.visited == once * (len(machine.visited) // len(once))
    assert machine.now < 4.0


def test_a_slow_model_is_timed_with_few_steps_and_one_context() -> None:
    machine = Machine(2.0)
    (curve,) = time_steps(machine.visit, PLACE, TimingPlan(SIZES, (256, 2000)), 2.0, machine.clock)

    assert curve.context == 256
    assert list(curve.seconds) == [1, 4, 16]
    assert len(machine.visited) == 3


def test_the_fewest_sizes_still_hold_plain_decoding_and_one_tree() -> None:
    assert TimingPlan((1, 8), (256,)).fitting(1000.0) == ((1, 8), (256,), 1)
