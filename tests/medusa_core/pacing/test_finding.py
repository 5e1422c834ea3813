from collections.abc import Iterator
from dataclasses import replace

import pytest

from medusa_core.calibration import Calibration, LatencyCurve
from medusa_core.generation import EngineInfo
from medusa_core.pacing import Situation
from medusa_core.pacing.finding import find_pacing, situations
from tests.cast import MockBackbone, make_engine
from tests.medusa_core.pacing.cast import PLACE, curve

CALIBRATION = Calibration(((0.6, 0.2), (0.4, 0.1)), (9, 9), (1.0, 1.0), tokens_per_step={4: 1.9})


def info(calibration: Calibration | None, max_context: int = 8192) -> EngineInfo:
    made = make_engine(MockBackbone(), tree_nodes=8).info
    return replace(
        made, place=PLACE, max_context=max_context, tree_sizes=(1, 4, 16), calibration=calibration, plain_step_s=0.002
    )


def free(nodes: int, situation: Situation) -> Iterator[float]:
    """Trees that cost nothing."""
    while True:
        yield 0.002


def forbidden(nodes: int, situation: Situation) -> Iterator[float]:
    raise AssertionError("what is calibrated need not be timed")


def test_what_was_calibrated_at_this_place_is_not_timed_again() -> None:
    measured = {1: 2.0, 2: 2.1, 4: 2.2, 16: 2.5, 64: 9.0}
    known = CALIBRATION.with_latency(*(curve(at.rows, measured, at.is_sampled) for at in situations(info(None))))

    assert find_pacing(info(known), forbidden, 0.0).sizes == (1, 4, 16)


@pytest.mark.parametrize(
    "curves",
    [
        [],
        [curve(256, {1: 2.0, 4: 9.0, 16: 9.9})],  # nobody knows what a long context costs
        [curve(256, {1: 2.0, 5: 2.2}), curve(4096, {1: 2.0, 5: 2.2})],  # no tree of these sizes
        [replace(curve(rows, {1: 2.0, 4: 9.0}), place=replace(PLACE, threads=8)) for rows in (256, 4096)],
    ],
    ids=["never", "short only", "other sizes", "other place"],
)
def test_steps_are_timed_where_nobody_did_so_before(curves: list[LatencyCurve]) -> None:
    assert find_pacing(info(CALIBRATION.with_latency(*curves)), free, 0.0).sizes == (1, 16)


def test_heads_without_calibration_and_no_heads_begin_with_careful_expectations() -> None:
    assert find_pacing(info(None), free, 0.0).sizes == (1, 16)


def test_steps_are_timed_behind_a_conversation_and_a_long_document_and_on_a_processor_with_sampling() -> None:
    processor, card = info(None), replace(info(None), place=replace(PLACE, threads=None))

    assert situations(processor) == (Situation(256), Situation(4096), Situation(256, is_sampled=True))
    assert situations(card) == (Situation(256), Situation(4096))


@pytest.mark.parametrize(("max_context", "rows"), [(2048, [256, 2003]), (400, [256]), (8, [1])])
def test_no_context_is_longer_than_the_model_allows(max_context: int, rows: list[int]) -> None:
    assert [at.rows for at in situations(info(None, max_context)) if not at.is_sampled] == rows


def test_delivery_counts_on_a_processor_alone() -> None:
    def steep(nodes: int, situation: Situation) -> Iterator[float]:
        while True:
            yield 0.001 if nodes == 1 else 0.011

    processor, card = info(None), replace(info(None), place=replace(PLACE, threads=None))
    found = [find_pacing(where, steep, delivery_s).sizes for where in (processor, card) for delivery_s in (0.0, 0.01)]

    assert found == [(1,), (1, 16), (1,), (1,)]
