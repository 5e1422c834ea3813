"""Steps that are recorded once and replayed, with the host one step ahead of the device.

A step reads the state of the sequence and what the request asks for from buffers that stay where they are, and leaves
the next state in them; the host is told one row of integers. One recording serves every step of a drafter, a bucket
of visible rows and a kind of request. It is made where it is first needed, after a few steps done the ordinary way:
those are steps of the answer too, nothing is computed to be thrown away.

Because the next step needs nothing from the host, it is issued before the last one's row is read. So one step too many
runs at the end of an answer: it writes rows behind the sequence only, which are scratch.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medusa_core.acceptance import AcceptanceRule
from medusa_core.adjustments import Adjustments
from medusa_core.backbone import Backbone
from medusa_core.decoding import accept_and_commit, logprobs_of, verify
from medusa_core.drafters import Drafter, DraftState
from medusa_core.kv_cache import KVCache
from medusa_core.runners.capture import HostReads, Launcher
from medusa_core.runners.eager import EagerRunner
from medusa_core.runners.held import fill, hold, signature
from medusa_core.runners.row import Layout, pack
from medusa_core.runners.runner import DecodePlan, StepResult

__all__ = ["GraphRunner", "coarse_bucket"]

_log = logging.getLogger(__name__)

# Steps before one is recorded: libraries choose and allocate in the first ones.
_WARM_UPS = 3
# Recordings that are kept; each holds some megabytes of launch parameters on the device.
_MOST_RECORDINGS = 32
_SMALLEST_BUCKET = 256


@dataclass(frozen=True)
class _Kind:
    """What a recorded step reads and writes, for all requests that ask for the same things."""

    adjustments: Adjustments
    rule: AcceptanceRule
    state: DraftState
    top_logprobs: int | None


@dataclass(frozen=True)
class _Issued:
    """A step on its way: what waits for its row, and the most tokens it may bring."""

    read: Callable[[], StepResult]
    places: int


class GraphRunner:
    """Replays recorded steps; results are the eager runner's.

    An answer with a grammar is left to the eager runner: what the grammar allows is found out on the host, between the
    two halves of every step, so there is no running ahead.
    """

    def __init__(
        self, backbone: Backbone, cache: KVCache, launcher: Launcher, most_recordings: int = _MOST_RECORDINGS
    ) -> None:
        """`launcher` is the device's; of the recordings the latest used are kept."""
        self._backbone, self._cache, self._launcher = backbone, cache, launcher
        self._most_recordings = most_recordings
        self._eager = EagerRunner(backbone, cache)
        self._held: dict[Any, Any] = {}
        self._recordings: OrderedDict[Any, _Recording] = OrderedDict()

    @property
    def num_recordings(self) -> int:
        """How many kinds of steps are known, recorded or still warming up."""
        return len(self._recordings)

    @torch.inference_mode()
    def steps(self, plan: DecodePlan, state: DraftState, past: int) -> Iterator[StepResult]:
        """See Runner.steps."""
        if plan.constraint is not None:
            yield from self._eager.steps(plan, state, past)
            return
        kind = _Kind(self._hold(plan.adjustments), self._hold(plan.rule), self._hold(state), plan.top_logprobs)
        slot, issued = 0, self._issue(plan.drafting.next(past), kind, past, 0)
        while True:
            slot = 1 - slot
            following = self._issue(plan.drafting.next(past), kind, past + issued.places, slot)
            result = issued.read()
            past += len(result.tokens)
            yield result
            issued = following

    def _hold(self, value: Any) -> Any:
        """The buffers for values of this kind, filled with this one."""
        key = signature(value)
        if key in self._held:
            fill(self._held[key], value)
        else:
            self._held[key] = hold(value)
        return self._held[key]

    def _issue(self, drafter: Drafter, kind: _Kind, most_past: int, slot: int) -> _Issued:
        """Let the device take a step and send its row; `most_past` is the most rows that may be committed by then."""
        # the commit writes one block of max_depth + 1 rows behind the accepted ones
        needed = most_past + max(drafter.num_nodes, drafter.max_depth + 1)
        recording = self._recording(drafter, kind, min(self._cache.rows, coarse_bucket(needed)))
        row, layout = recording.run()
        fetched = self._launcher.fetch(row, slot)
        return _Issued(lambda: layout.read(fetched()), layout.places)

    def _recording(self, drafter: Drafter, kind: _Kind, visible_rows: int) -> "_Recording":
        # held values are as good as their signatures, and a recording keeps its drafter, so no identity comes twice
        key = id(drafter), visible_rows, id(kind.adjustments), id(kind.rule), id(kind.state), kind.top_logprobs
        if key not in self._recordings:
            self._recordings[key] = _Recording(
                self._launcher, lambda: self._step(drafter, kind, visible_rows), f"{drafter.num_nodes} nodes"
            )
            while len(self._recordings) > self._most_recordings:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(key)
        return self._recordings[key]

    def _step(self, drafter: Drafter, kind: _Kind, visible_rows: int) -> tuple[Tensor, Layout]:
        """One whole step over held buffers: its row [R] int64 and how to read it."""
        state = kind.state
        tree = drafter.draft(state)
        verified = verify(self._backbone, self._cache, tree, state.past, visible_rows)
        accepted, following = accept_and_commit(self._cache, kind.adjustments, kind.rule, verified, None, state)
        logprobs = None
        if kind.top_logprobs is not None:
            logits = verified.forward.logits.index_select(0, accepted.path)
            logprobs = logprobs_of(logits, accepted.tokens, kind.top_logprobs)
        row, layout = pack(accepted, tree, logprobs)
        fill(state, following)
        return row, layout


class _Recording:
    """A step that is taken the ordinary way a few times, then recorded, then replayed."""

    def __init__(self, launcher: Launcher, step: Callable[[], tuple[Tensor, Layout]], name: str) -> None:
        self._launcher, self._step, self._name = launcher, step, name
        self._times = 0
        self._outcome: tuple[Tensor, Layout] | None = None
        self._replay: Callable[[], None] | None = None
        self._is_recordable = True

    def run(self) -> tuple[Tensor, Layout]:
        """Take the step; its row [R] int64, in a buffer that the next time overwrites, and how to read it."""
        if self._times == 0:
            self._take_the_first()
        elif self._times < _WARM_UPS or not self._is_recordable:
            self._launcher.warm_up(self._work)
        else:
            if self._replay is None:
                self._replay = self._launcher.capture(self._work)
            self._replay()
        self._times += 1
        assert self._outcome is not None, "the first step leaves its outcome"
        return self._outcome

    def _take_the_first(self) -> None:
        """Find out how large the row is, and whether the step can be recorded at all."""
        with HostReads() as reads:
            self._launcher.warm_up(self._work)
        if reads.found:
            self._is_recordable = False
            _log.warning("steps of %s are not recorded: %s makes the host wait", self._name, reads.found[0])

    def _work(self) -> None:
        row, layout = self._step()
        if self._outcome is None:
            self._outcome = row.clone(), layout
        else:
            self._outcome[0].copy_(row)


def coarse_bucket(rows: int) -> int:
    """Visible rows in buckets that grow with them: few recordings for a long answer, a quarter read in vain at most."""
    multiple = max(_SMALLEST_BUCKET, 1 << max(0, rows.bit_length() - 3))
    return -(-rows // multiple) * multiple
