"""From what was measured, at the start or by `medusa calibrate`, to an engine's choice of tree sizes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from medusa_core.calibration import LatencyCurve
from medusa_core.generation import EngineInfo
from medusa_core.pacing.costs import StepCosts
from medusa_core.pacing.gains import echoed_tokens, expected_tokens
from medusa_core.pacing.learning import Pacing
from medusa_core.pacing.timing import Situation, TimingPlan, time_steps

__all__ = ["find_pacing", "situations"]

_log = logging.getLogger(__name__)

# Rows behind which steps are timed: of an ordinary conversation, and of a long document.
_SHORT, _LONG = 256, 4096
# Steps of a tree that one visit may take, with room to spare; as many rows hold those of a plain one.
_STEPS = 5


def situations(info: EngineInfo) -> tuple[Situation, ...]:
    """In what steps are timed: behind a short context, behind a long one where the model holds it, and sampled.

    Only on a CPU, where the noise of a whole vocabulary takes a time that matters, and the model may be small.
    """
    room = max(1, info.max_context - _STEPS * (info.max_depth + 1))
    short, long = min(_SHORT, room), min(_LONG, room)
    found = [Situation(short)]
    if long >= 2 * short:
        found.append(Situation(long))
    if info.place.threads is not None:
        found.append(Situation(short, is_sampled=True))
    return tuple(found)


def find_pacing(info: EngineInfo, begin: Callable[[int, Situation], Iterator[float]], delivery_s: float) -> Pacing:
    """Let an engine choose among its tree sizes by what a step of each costs here.

    delivery_s: what each step takes beside; see EngineConfig.delivery_ms. On a card it is hidden behind the next step.
    begin: starts decoding with so many nodes in a situation, and yields the seconds of each step. Not called where
           somebody measured all that at this very place.
    """
    wanted = situations(info)
    curves: Sequence[LatencyCurve] = ()
    if info.calibration is not None:
        curves = [_restricted(curve, info.tree_sizes) for curve in info.calibration.curves_at(info.place)]
    source = "as calibrated"
    if len(curves) < len(wanted) or any(len(curve.seconds) < 2 or 1 not in curve.seconds for curve in curves):
        curves = time_steps(begin, info.place, TimingPlan(info.tree_sizes, wanted), info.plain_step_s)
        source = "measured now"
    beside_s = delivery_s if info.place.threads is not None else 0.0
    costs = StepCosts(curves, info.max_depth + 1, beside_s)
    for curve in curves:
        taken = ", ".join(f"{nodes}: {1e3 * seconds:.2f}" for nodes, seconds in sorted(curve.seconds.items()))
        kind = "sampled" if curve.is_sampled else "greedy"
        _log.info("milliseconds of a %s step by nodes behind %d tokens, %s: %s", kind, curve.context, source, taken)
    _log.info("each step takes a tree of %s nodes, whichever is the fastest", " or ".join(map(str, costs.sizes)))
    echoed = echoed_tokens(costs.sizes, info.max_depth) if info.prompt_lookup else None
    return Pacing(costs, expected_tokens(costs.sizes, info.calibration, info.num_heads > 0), echoed)


def _restricted(curve: LatencyCurve, sizes: Sequence[int]) -> LatencyCurve:
    """The part of a curve that is about some sizes, or all of it where that is nothing."""
    seconds = {nodes: curve.seconds[nodes] for nodes in sizes if nodes in curve.seconds}
    return replace(curve, seconds=seconds) if seconds else curve
