from collections.abc import Iterator
from dataclasses import replace

import pytest

from medusa_core.calibration import Calibration, LatencyCurve
from medusa_core.generation import EngineInfo
from medusa_core.pacing.finding import contexts, find_pacing
from tests.cast import MockBackbone, make_engine
from tests.medusa_core.pacing.cast import PLACE, curve

CALIBRATION = Calibration(((0.6, 0.2), (0.4, 0.1)), (9, 9), (1.0, 1.0), tokens_per_step={4: 1.9})


def info(calibration: Calibration | None, max_context: int = 8192) -> EngineInfo:
    made = make_engine(MockBackbone(), tree_nodes=8).info
    return replace(
        made, place=PLACE, max_context=max_context, tree_sizes=(1, 4, 16), calibration=calibration, plain_step_s=0.002
    )


def free(nodes: int, rows: int) -> Iterator[float]:
    """Trees that cost nothing."""
    while True:
        yield 0.002


def forbidden(nodes: int, rows: int) -> Iterator[float]:
    raise AssertionError("what is calibrated need not be timed")


def test_what_was_calibrated_at_this_place_is_not_timed_again() -> None:
    measured = {1: 2.0, 2: 2.1, 4: 2.2, 16: 2.5, 64: 9.0}
    known = CALIBRATION.with_latency(curve(256, measured), curve(4096, measured))

    assert find_pacing(info(known), forbidden).sizes == (1, 4, 16)


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
    assert find_pacing(info(CALIBRATION.with_latency(*curves)), free).sizes == (1, 16)


def test_heads_without_calibration_and_no_heads_begin_with_careful_expectations() -> None:
    assert find_pacing(info(None), free).sizes == (1, 16)


def test_steps_are_timed_behind_a_conversation_and_behind_a_long_document_where_that_fits() -> None:
    assert contexts(8192, 8) == (256, 4096)
    assert contexts(2048, 8) == (256, 2012)
    assert contexts(300, 8) == (256,)
    assert contexts(8, 8) == (1,)
