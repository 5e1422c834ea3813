"""From what was measured, at the start or by `medusa calibrate`, to an engine's choice of tree sizes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from medusa_core.calibration import LatencyCurve
from medusa_core.generation import EngineInfo
from medusa_core.pacing.costs import StepCosts
from medusa_core.pacing.gains import expected_tokens
from medusa_core.pacing.learning import Pacing
from medusa_core.pacing.timing import TimingPlan, time_steps

__all__ = ["contexts", "find_pacing"]

_log = logging.getLogger(__name__)

# Rows behind which steps are timed: of an ordinary conversation, and of a long document.
_SHORT, _LONG = 256, 4096
# Steps that one visit may take, with room to spare.
_STEPS = 4


def contexts(max_context: int, max_depth: int) -> tuple[int, ...]:
    """Rows of the cache behind which steps are timed, the shorter first; one where the model holds no two of them."""
    room = max(1, max_context - _STEPS * (max_depth + 1))
    short, long = min(_SHORT, room), min(_LONG, room)
    return (short, long) if long >= 2 * short else (short,)


def find_pacing(info: EngineInfo, begin: Callable[[int, int], Iterator[float]]) -> Pacing:
    """Let an engine choose among its tree sizes by what a step of each costs here.

    begin: starts decoding with so many nodes behind so many rows, and yields the seconds of each step. Not called where
           somebody measured at this very place, behind a short and a long context.
    """
    wanted = contexts(info.max_context, info.max_depth)
    curves: Sequence[LatencyCurve] = ()
    if info.calibration is not None:
        curves = [_restricted(curve, info.tree_sizes) for curve in info.calibration.curves_at(info.place)]
    source = "as calibrated"
    if len(curves) < len(wanted) or any(len(curve.seconds) < 2 or 1 not in curve.seconds for curve in curves):
        curves = time_steps(begin, info.place, TimingPlan(info.tree_sizes, wanted), info.plain_step_s)
        source = "measured now"
    costs = StepCosts(curves, most_tokens=info.max_depth + 1)
    for curve in curves:
        taken = ", ".join(f"{nodes}: {1e3 * seconds:.2f}" for nodes, seconds in sorted(curve.seconds.items()))
        _log.info("milliseconds of a step by nodes behind %d tokens, %s: %s", curve.context, source, taken)
    _log.info("each step takes a tree of %s nodes, whichever is the fastest", " or ".join(map(str, costs.sizes)))
    return Pacing(costs, expected_tokens(costs.sizes, info.calibration, info.num_heads > 0))


def _restricted(curve: LatencyCurve, sizes: Sequence[int]) -> LatencyCurve:
    """The part of a curve that is about some sizes, or all of it where that is nothing."""
    seconds = {nodes: curve.seconds[nodes] for nodes in sizes if nodes in curve.seconds}
    return replace(curve, seconds=seconds) if seconds else curve
