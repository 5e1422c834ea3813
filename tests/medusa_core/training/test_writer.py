from collections.abc import Callable, Sequence

import pytest

from medusa_core.training.writer import ENGINE_ROWS, TRIAL_BATCHES, Question, Writer, choose_writer


class Clock:
    """Time that passes only while somebody writes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeWriter:
    """Takes so many seconds for each answer."""

    ends = frozenset[int]()

    def __init__(self, name: str, clock: Clock, seconds: float, open_now: list[str]) -> None:
        assert open_now == [], "two copies of a model may not fit"
        self.name, self._clock, self._seconds, self._open_now = name, clock, seconds, open_now
        open_now.append(name)

    def __del__(self) -> None:
        self._open_now.clear()

    def write(self, questions: Sequence[Question]) -> list[list[int]]:
        self._clock.now += self._seconds * len(questions)
        return [[1] * question.max_tokens for question in questions]


def chosen(rows: int, batches: int, engine_seconds: float | None) -> tuple[str, int]:
    """Whom the rule takes when the batch needs a second for each answer, and how often it opened somebody."""
    clock, open_now, opened = Clock(), list[str](), list[str]()

    def opener(name: str, seconds: float) -> Callable[[], Writer]:
        def opening() -> Writer:
            opened.append(name)
            return FakeWriter(name, clock, seconds, open_now)

        return opening

    engine = opener("engine", engine_seconds) if engine_seconds is not None else None
    writer = choose_writer(opener("batch", 1.0), engine, [Question((5,), 100, 0)] * rows, batches, clock)
    return writer.name, len(opened)


@pytest.mark.parametrize(("engine_seconds", "expected"), [(0.5, ("engine", 2)), (2.0, ("batch", 3))])
def test_for_a_few_prompts_the_faster_one_is_measured(engine_seconds: float, expected: tuple[str, int]) -> None:
    assert chosen(rows=2, batches=TRIAL_BATCHES, engine_seconds=engine_seconds) == expected


def test_without_heads_there_is_nothing_to_try() -> None:
    assert chosen(rows=1, batches=99, engine_seconds=None) == ("batch", 1)


def test_a_single_prompt_at_once_is_the_engines() -> None:
    assert chosen(rows=1, batches=1, engine_seconds=0.5) == ("engine", 1)


@pytest.mark.parametrize(("rows", "batches"), [(ENGINE_ROWS + 1, 99), (2, TRIAL_BATCHES - 1)])
def test_large_batches_and_short_runs_are_not_worth_a_trial(rows: int, batches: int) -> None:
    assert chosen(rows, batches, engine_seconds=0.01) == ("batch", 1)
