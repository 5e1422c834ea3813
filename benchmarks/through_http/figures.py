"""From streamed answers to figures: medians for people, totals for what has to agree with each other."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.through_http.asking import Streamed
from medusa_core.evaluation.spread import Spread, spread

__all__ = ["GENERATE", "PLAIN", "Found", "Limits", "StreamFigures", "Totals", "figures_of", "parting", "totals"]

# The peers whose speed the others' is told by.
PLAIN = "plain"
GENERATE = "transformers.generate"


@dataclass(frozen=True)
class Totals:
    """All prompts together, each counted once: of its repeats the median.

    tokens: behind the first of each answer.
    """

    tokens: int
    decode_s: float
    steps: int | None
    worker_s: float | None
    computed_s: float | None

    @property
    def tokens_per_step(self) -> float | None:
        """Bonus included."""
        return self.tokens / self.steps if self.steps else None

    @property
    def worker_step_s(self) -> float | None:
        """A step by the worker's own clock."""
        return self.worker_s / self.steps if self.worker_s is not None and self.steps else None


def totals(answers: Mapping[int, Sequence[Streamed]]) -> Totals:
    """Totals over the repeats of each prompt, by the prompt's number; answers without a step count for nothing."""
    stepping = [repeats for repeats in answers.values() if repeats[0].step_tokens > 0]
    steps = [repeats[0].steps for repeats in stepping]
    return Totals(
        tokens=sum(repeats[0].step_tokens for repeats in stepping),
        decode_s=sum(statistics.median(one.decode_s for one in repeats) for repeats in stepping),
        steps=sum(count for count in steps if count is not None) if None not in steps else None,
        worker_s=_sum_of_medians([[one.worker_s for one in repeats] for repeats in stepping]),
        computed_s=_sum_of_medians([[one.computed_s for one in repeats] for repeats in stepping]),
    )


def _sum_of_medians(found: Sequence[Sequence[float | None]]) -> float | None:
    """Of each prompt's repeats the median, added up; None where one of them was not told."""
    told = [[value for value in repeats if value is not None] for repeats in found]
    return sum(statistics.median(repeats) for repeats in told) if told and all(told) else None


@dataclass(frozen=True)
class Limits:
    """What the memory of this machine allows.

    bytes_per_second: of copying, read and written bytes together.
    bytes_per_step:   weights and cache rows that one step of one token has to read.
    """

    bytes_per_second: float
    bytes_per_step: float

    @property
    def step_s(self) -> float:
        """The shortest possible plain step."""
        return self.bytes_per_step / self.bytes_per_second


@dataclass(frozen=True)
class StreamFigures:
    """What one peer did on one set of prompts, as its client saw it.

    first_ms:            from the request to its first text.
    per_token_ms:        of one answer, from its first token to its last, by the tokens behind the first.
    tokens_per_second:   the same the other way round; `end_to_end` counts the prompt's time in.
    tokens_per_step:     emitted tokens by verifying passes, bonus included; None where the peer does not tell.
    acceptance_length:   accepted drafts of a step, bonus not included.
    step_ms:             a step by the worker's own clock; None, like all about steps, for a peer that does not tell.
    http_ms:             what a step takes at the client beside what the worker computed for it.
    overhead:            step by the plain step.
    over_plain:          speed by our own plain decoding's; over_generate: by transformers'.
    identity:            tokens per step by overhead, by the speed-up: 1 where all that costs time was measured.
    share_of_limit:      shortest possible plain step by the step.
    differing:           prompts whose answer is not the reference's; parted_at: characters before they part.
    """

    peer: str
    prompts: int
    first_ms: Spread
    per_token_ms: Spread
    tokens_per_second: Spread
    end_to_end: Spread
    tokens_per_step: float | None
    acceptance_length: float | None
    accepted_by_source: Mapping[str, int]
    step_ms: float | None
    http_ms: float | None
    overhead: float | None
    over_plain: float | None
    over_generate: float | None
    identity: float | None
    share_of_limit: float | None
    differing: int
    parted_at: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """The figures of every peer on one set of prompts."""

    name: str
    limits: Limits
    figures: tuple[StreamFigures, ...]


def figures_of(
    answers: Mapping[str, Mapping[int, Sequence[Streamed]]], reference: str, limits: Limits
) -> tuple[StreamFigures, ...]:
    """The figures of every peer.

    answers:   by peer, by the number of the prompt, one for each repeat; PLAIN and GENERATE are those compared with.
    reference: the peer whose texts the others' are compared with.
    """
    found = {peer: totals(own) for peer, own in answers.items()}
    others = found.get(PLAIN), found.get(GENERATE)
    return tuple(_figures(peer, own, answers[reference], found[peer], others, limits) for peer, own in answers.items())


def _figures(
    peer: str,
    answers: Mapping[int, Sequence[Streamed]],
    reference: Mapping[int, Sequence[Streamed]],
    own: Totals,
    others: tuple[Totals | None, Totals | None],
    limits: Limits,
) -> StreamFigures:
    """The figures of one peer; `others` are the totals of plain decoding and of transformers.generate."""
    every = [one for repeats in answers.values() for one in repeats]
    stepping = [one for one in every if one.step_tokens > 0]
    over_plain, over_generate = (_speed_up(own, other) for other in others)
    step_s, plain_s = own.worker_step_s, others[0].worker_step_s if others[0] is not None else None
    overhead = step_s / plain_s if step_s is not None and plain_s is not None else None
    tokens_per_step = own.tokens_per_step
    identity = None
    if tokens_per_step is not None and overhead is not None and over_plain is not None:
        identity = tokens_per_step / overhead / over_plain
    accepted: Counter[str] = Counter()
    for repeats in answers.values():
        accepted.update(repeats[0].accepted)
    parted = [parting(repeats[0].text, reference[number][0].text) for number, repeats in answers.items()]
    return StreamFigures(
        peer=peer,
        prompts=len(answers),
        first_ms=spread(1e3 * one.first_s for one in every),
        per_token_ms=spread(1e3 * one.decode_s / one.step_tokens for one in stepping),
        tokens_per_second=spread(one.step_tokens / one.decode_s for one in stepping),
        end_to_end=spread(one.num_tokens / one.last_s for one in every),
        tokens_per_step=tokens_per_step,
        acceptance_length=accepted.total() / own.steps if own.steps and accepted else None,
        accepted_by_source=dict(accepted),
        step_ms=1e3 * step_s if step_s is not None else None,
        http_ms=_http_ms(own),
        overhead=overhead,
        over_plain=over_plain,
        over_generate=over_generate,
        identity=identity,
        share_of_limit=limits.step_s / step_s if step_s is not None else None,
        differing=sum(place is not None for place in parted),
        parted_at=tuple(place for place in parted if place is not None),
    )


def _speed_up(own: Totals, other: Totals | None) -> float | None:
    """Tokens per second by another peer's."""
    return own.tokens / own.decode_s / (other.tokens / other.decode_s) if other is not None else None


def _http_ms(own: Totals) -> float | None:
    """What a step takes at the client beside what was computed for it."""
    computed_s = own.computed_s if own.computed_s is not None else own.worker_s
    return 1e3 * (own.decode_s - computed_s) / own.steps if computed_s is not None and own.steps else None


def parting(text: str, other: str) -> int | None:
    """Characters that two texts share from their beginnings; None for equal texts."""
    if text == other:
        return None
    pairs: Iterable[tuple[str, str]] = zip(text, other, strict=False)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(text), len(other)))
