from collections.abc import Iterator

from medusa_core.pacing import Situation, TimingPlan, time_steps
from tests.medusa_core.pacing.cast import PLACE

SIZES = (1, 2, 4, 8, 16, 32)
SITUATIONS = (Situation(256), Situation(2000), Situation(256, is_sampled=True))


class Machine:
    """Steps that take what a formula says, on a clock that only they move."""

    def __init__(self, plain_s: float) -> None:
        self._plain_s = plain_s
        self.now, self.visited = 0.0, list[tuple[int, Situation]]()

    def visit(self, nodes: int, situation: Situation) -> Iterator[float]:
        self.visited.append((nodes, situation))
        seconds = 5 * self.step(nodes, situation)  # the first one is slow
        while True:
            self.now += seconds
            yield seconds
            seconds = self.step(nodes, situation)

    def step(self, nodes: int, at: Situation) -> float:
        return self._plain_s * (1 + nodes / 20 + at.rows / 10_000 + at.is_sampled / 10)

    def clock(self) -> float:
        return self.now


def test_steps_are_timed_for_each_size_and_situation_without_the_first_of_a_visit() -> None:
    machine = Machine(0.002)
    curves = time_steps(machine.visit, PLACE, TimingPlan(SIZES, SITUATIONS), 0.002, machine.clock)

    assert [Situation(curve.context, curve.is_sampled) for curve in curves] == list(SITUATIONS)
    for curve, at in zip(curves, SITUATIONS, strict=True):
        assert curve.place == PLACE
        assert curve.seconds == {size: machine.step(size, at) for size in SIZES}


def test_visits_are_interleaved_and_end_in_time() -> None:
    machine = Machine(0.01)
    time_steps(machine.visit, PLACE, TimingPlan(SIZES, SITUATIONS), 0.01, machine.clock)
    once = [(size, at) for at in SITUATIONS for size in SIZES]

    assert machine.visited == once * (len(machine.visited) // len(once))
    assert machine.now < 4.0


def test_a_slow_model_is_timed_with_few_steps_in_one_situation() -> None:
    machine = Machine(2.0)
    (curve,) = time_steps(machine.visit, PLACE, TimingPlan(SIZES, SITUATIONS), 2.0, machine.clock)

    assert curve.context == 256
    assert list(curve.seconds) == [1, 4, 16]
    assert len(machine.visited) == 3


def test_the_fewest_sizes_still_hold_plain_decoding_and_one_tree() -> None:
    assert TimingPlan((1, 8), SITUATIONS).fitting(1000.0) == ((1, 8), SITUATIONS[:1], 1)
