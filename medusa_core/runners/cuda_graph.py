"""Steps that are recorded once and replayed, with the host one step ahead of the device.

A step reads the state of the sequence and what the request asks for from buffers that stay where they are, and leaves
the next state in them; the host is told one row of integers. One recording serves every step of a drafter, a bucket
of visible rows and a kind of request. It is made where it is first needed, after a few steps done the ordinary way.

Because the next step needs nothing from the host, it is issued before the last one's row is read. So one step too many
runs at the end of an answer: it writes rows behind the sequence only, which are scratch.

A grammar splits a step: what it allows is found out on the host, from the tokens of the tree and while they are
verified. Then drafting, verifying and accepting are three recordings, and nothing runs ahead.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from medusa_core.acceptance import AcceptanceRule
from medusa_core.adjustments import Adjustments
from medusa_core.backbone import Backbone, Forward
from medusa_core.constraints import Constraint
from medusa_core.decoding import OrdinaryPrompts, Prompts, Verified, accept_and_commit, logprobs_of, verify
from medusa_core.drafters import Drafter, DraftState, Grammatical
from medusa_core.kv_cache import KVCache
from medusa_core.runners.capture import Launcher
from medusa_core.runners.grammar import check_tree, host_tree, what_follows
from medusa_core.runners.held import fill, hold, signature
from medusa_core.runners.prompts import RecordedPrompts, coarse_bucket
from medusa_core.runners.recording import WARM_UPS, Recording
from medusa_core.runners.row import Row, pack
from medusa_core.runners.runner import DecodePlan, StepResult
from medusa_core.tree import CandidateTree

__all__ = ["GraphRunner"]

# Recordings that are kept; each holds some megabytes of launch parameters on the device.
_MOST_RECORDINGS = 64

Held = TypeVar("Held")


@dataclass(frozen=True)
class _Kind:
    """What a recorded step reads and writes, for all requests that ask for the same things."""

    adjustments: Adjustments
    rule: AcceptanceRule
    state: DraftState
    top_logprobs: int | None

    @property
    def key(self) -> tuple[Any, ...]:
        """Tells kinds apart: there is one held value for each signature."""
        return id(self.adjustments), id(self.rule), id(self.state), self.top_logprobs


@dataclass(frozen=True)
class _Checked:
    """What a grammar leaves of a tree: its used slots [N] bool, and what it allows at each node, [N, V] bool."""

    used: Tensor
    allowed: Tensor


@dataclass(frozen=True)
class _Split:
    """The parts of a step with a grammar; each reads the outcome of the one before where that always lies."""

    draft: Recording[CandidateTree]
    verify: Recording[Forward]
    accept: Recording[Row]


class GraphRunner:
    """Replays recorded steps; results are the eager runner's."""

    settling_steps = WARM_UPS + 1

    def __init__(
        self, backbone: Backbone, cache: KVCache, launcher: Launcher, most_recordings: int = _MOST_RECORDINGS
    ) -> None:
        """`launcher` is the device's; of the recordings the latest used are kept."""
        self._backbone, self._cache, self._launcher = backbone, cache, launcher
        self._most_recordings = most_recordings
        self._held: dict[Any, Any] = {}
        # with the drafter of each, so that no other one gets its identity
        self._recordings: OrderedDict[Any, tuple[Drafter, Any]] = OrderedDict()

    def prompts(self, lengths: Sequence[int]) -> Prompts:
        """See Runner.prompts."""
        ordinary = OrdinaryPrompts(self._backbone, self._cache)
        return RecordedPrompts(self._backbone, self._cache, self._launcher, lengths, ordinary) if lengths else ordinary

    @torch.inference_mode()
    def steps(self, plan: DecodePlan, state: DraftState, past: int) -> Iterator[StepResult]:
        """See Runner.steps."""
        held = self._hold(plan.adjustments), self._hold(plan.rule), self._hold(replace(state, grammar=None))
        kind = _Kind(*held, plan.top_logprobs)
        if plan.constraint is not None:
            yield from self._with_grammar(plan, plan.constraint, kind, past)
        else:
            yield from self._ahead(plan, kind, past)

    def _ahead(self, plan: DecodePlan, kind: _Kind, past: int) -> Iterator[StepResult]:
        """Steps that are issued before the one before is known."""
        slot, drafter = 0, plan.drafting.next(past)
        waiting = self._issue(drafter, kind, past, slot)
        while True:
            # so many rows at most are committed when the next step begins
            most_past = past + drafter.max_depth + 1
            slot, drafter = 1 - slot, plan.drafting.next(past)
            following = self._issue(drafter, kind, most_past, slot)
            result = waiting()
            past += len(result.tokens)
            yield result
            waiting = following

    def _issue(self, drafter: Drafter, kind: _Kind, most_past: int, slot: int) -> Callable[[], StepResult]:
        """Let the device take a step and send its row; what is returned waits for it."""
        visible_rows = self._visible_rows(drafter, most_past)

        def record() -> Recording[Row]:
            name = f"a step of {drafter.num_nodes} nodes"
            return Recording(self._launcher, lambda: self._step(drafter, kind, visible_rows), name)

        row = self._recorded(drafter, (visible_rows, kind.key), record).run()
        read = self._launcher.fetch(row.values, slot)
        return lambda: row.layout.read(read())

    def _with_grammar(self, plan: DecodePlan, constraint: Constraint, kind: _Kind, past: int) -> Iterator[StepResult]:
        """Steps in three parts, with the grammar asked in between."""
        vocab_size, device = self._backbone.vocab_size, self._backbone.device
        while True:
            forced = constraint.forced()
            drafter = plan.drafting.next(past, len(forced))
            grammar = self._hold(what_follows(constraint, forced, drafter.max_depth, vocab_size, device))
            split = self._split(drafter, kind, grammar, self._visible_rows(drafter, past))
            tree = split.draft.run()
            # read before the forward pass is issued, so that a device need not finish that first
            drafted = host_tree(tree)
            split.verify.run()
            checked, allowed = check_tree(constraint, tree, drafted, vocab_size)
            self._hold(_Checked(checked.used, allowed))
            row = split.accept.run()
            result = row.layout.read(self._launcher.fetch(row.values, 0)())
            constraint.advance(result.tokens)
            past += len(result.tokens)
            yield result

    def _split(self, drafter: Drafter, kind: _Kind, grammar: Grammatical, visible_rows: int) -> _Split:
        state = kind.state

        def record() -> _Split:
            # the values are of no matter: every step puts its own there
            used = torch.ones(drafter.num_nodes, dtype=torch.bool, device=self._backbone.device)
            checked = self._hold(_Checked(used, used[:, None].expand(-1, self._backbone.vocab_size).contiguous()))
            draft = Recording(self._launcher, lambda: drafter.draft(replace(state, grammar=grammar)), "drafting")
            forward = Recording(
                self._launcher,
                lambda: verify(self._backbone, self._cache, draft.outcome, state.past, visible_rows).forward,
                "verifying",
            )

            def accept() -> Row:
                tree = replace(draft.outcome, used=checked.used)
                return self._accept(drafter, Verified(tree, forward.outcome), checked.allowed, kind)

            return _Split(draft, forward, Recording(self._launcher, accept, "accepting"))

        return self._recorded(drafter, (visible_rows, kind.key, id(grammar)), record)

    def _step(self, drafter: Drafter, kind: _Kind, visible_rows: int) -> Row:
        """One whole step over held buffers."""
        tree = drafter.draft(kind.state)
        verified = verify(self._backbone, self._cache, tree, kind.state.past, visible_rows)
        return self._accept(drafter, verified, None, kind)

    def _accept(self, drafter: Drafter, verified: Verified, allowed: Tensor | None, kind: _Kind) -> Row:
        """Accept and leave the next state where this one was; `allowed` [N, V] bool is what a grammar allows."""
        state = kind.state
        accepted, following = accept_and_commit(self._cache, kind.adjustments, kind.rule, verified, allowed, state)
        drafter.learn(state, verified.tree, accepted.path, verified.forward.logits)
        logprobs = None
        if kind.top_logprobs is not None:
            logits = verified.forward.logits.index_select(0, accepted.path)
            logprobs = logprobs_of(logits, accepted.tokens, kind.top_logprobs)
        row = pack(accepted, verified.tree, logprobs)
        fill(state, following)
        return row

    def _visible_rows(self, drafter: Drafter, most_past: int) -> int:
        # the commit writes one block of max_depth + 1 rows behind the accepted ones
        needed = most_past + max(drafter.num_nodes, drafter.max_depth + 1)
        return min(self._cache.rows, coarse_bucket(needed)) if self._backbone.has_buckets else self._cache.rows

    def _hold(self, value: Held) -> Held:
        """The buffers for values of this signature, filled with this one."""
        key = signature(value)
        if key in self._held:
            fill(self._held[key], value)
        else:
            self._held[key] = hold(value)
        held: Held = self._held[key]
        return held

    def _recorded(self, drafter: Drafter, kind: tuple[Any, ...], record: Callable[[], Held]) -> Held:
        """What was recorded of a kind for this drafter; the longest unused goes when there are too many."""
        key = id(drafter), kind
        if key not in self._recordings:
            self._recordings[key] = drafter, record()
        self._recordings.move_to_end(key)
        while len(self._recordings) > self._most_recordings:
            self._recordings.popitem(last=False)
        found: Held = self._recordings[key][1]
        return found
