"""One answer as it grows: tokens in, text out, everything counted on the way.

Stop strings are found here, so the cut is made here, and so is the counting: steps whose tokens were delivered, and
tokens up to the cut.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from medusa_core.errors import MedusaError, QueueTimeout, RequestTimeout
from medusa_core.text import TextStream
from server.exchange import Generated
from server.metrics import ModelMetrics
from server.predicted import PredictionCount
from server.schemas.usage import SpeculationStats, StepRecord, Usage
from server.step_records import Recorder
from server.token_scores import ScoredToken
from server.worker.job import Job
from server.worker.messages import FinishReason, TokenDelta, TokenLogprobs

__all__ = ["Answer", "Echo", "Piece", "Tally"]


@dataclass(frozen=True)
class Piece:
    """A part of an answer.

    tokens:  with their log-probabilities, when those were asked for; they come with the text they spell, or before it.
    records: of the steps that emitted those tokens, when they were asked for.
    """

    text: str
    tokens: tuple[ScoredToken, ...] | None
    records: tuple[StepRecord, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.records)

    def __add__(self, other: "Piece") -> "Piece":
        tokens = None if self.tokens is None or other.tokens is None else self.tokens + other.tokens
        return Piece(self.text + other.text, tokens, self.records + other.records)


@dataclass(frozen=True)
class Echo:
    """A prompt that is repeated before its answer.

    offsets: characters of the text before each token.
    """

    text: str
    tokens: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass
class Tally:
    """What one request has cost so far, over all its answers.

    metrics: counted as deltas are delivered.
    mode:    label of medusa_decode_steps_total.
    arrived: monotonic time of the request.
    outcome: how the request ended, for medusa_requests_total; None until then.
    error:   what ended it, where an error did.
    """

    metrics: ModelMetrics
    mode: str
    endpoint: str
    arrived: float
    outcome: str | None = None
    error: MedusaError | None = None
    _prompt_tokens: int = 0
    _cached_tokens: int = 0
    _completion_tokens: int = 0
    _step_tokens: int = 0
    _drafted: Counter[str] = field(default_factory=Counter)
    _accepted: Counter[str] = field(default_factory=Counter)
    _decode_s: float = 0.0
    _acceptance_lengths: list[int] = field(default_factory=list)
    _last_delta: float = 0.0
    _rows: int = 0
    _predicted: list[PredictionCount] = field(default_factory=list)

    def watch(self, predicted: PredictionCount) -> None:
        """Tell in usage what became of one answer's prediction."""
        self._predicted.append(predicted)

    def count(self, delta: TokenDelta, used: int, is_prompt_new: bool) -> None:
        """Count a delta of which `used` tokens were delivered; a prompt counts with its first answer."""
        now = time.monotonic()
        gap_s, self._last_delta = now - self._last_delta, now
        self._completion_tokens += used
        self.metrics.generation_tokens.inc(used)
        self._rows = used + (self._rows if delta.prompt is None else delta.prompt.prompt_tokens)
        self.metrics.set_cache_rows(self._rows)
        if delta.prompt is not None and is_prompt_new:
            self._prompt_tokens += delta.prompt.prompt_tokens
            self._cached_tokens += delta.prompt.cached_tokens
            self.metrics.count_prompt(delta.prompt, now - self.arrived)
        if delta.step is None or used == 0:
            return
        # a cut may fall inside the accepted path; the bonus is the first to go
        accepted = Counter(delta.step.accepted[:used])
        length = accepted.total()
        self._step_tokens += used
        self._decode_s += delta.step.seconds
        self._acceptance_lengths.extend([0] * (length + 1 - len(self._acceptance_lengths)))
        self._acceptance_lengths[length] += 1
        self.metrics.count_step(self.mode, delta.step, used, gap_s)
        self._drafted.update(delta.step.drafted)
        self._accepted.update(accepted)
        for source, count in delta.step.drafted.items():
            self.metrics.count_source(source, count, accepted[source])

    def close(self, outcome: str) -> None:
        """Count the request once; outcome is a finish reason, timeout, abort or error."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        self.metrics.count_request(self.endpoint, outcome)
        self.metrics.e2e_latency.observe(time.monotonic() - self.arrived)
        if self._completion_tokens > 0:
            self.metrics.request_generation_tokens.observe(self._completion_tokens)
            self.metrics.decode_time.observe(self._decode_s)

    def fail(self, error: MedusaError) -> None:
        """Count a request that an error has ended."""
        self.error = error
        self.close("timeout" if isinstance(error, QueueTimeout | RequestTimeout) else "error")

    def generated(self, model_name: str, job: Job) -> Generated:
        """What the request has come to, for log and traces."""
        steps = sum(self._acceptance_lengths)
        return Generated(
            model=model_name,
            sampling=job.requests[0].sampling,
            max_tokens=job.requests[0].max_tokens,
            choices=len(job.requests),
            outcome=self.outcome if self.outcome is not None else "abort",
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            tokens=self._completion_tokens,
            steps=steps,
            tokens_per_step=round(self._step_tokens / steps, 4) if steps > 0 else None,
            acceptance_length=round(self._accepted.total() / steps, 4) if steps > 0 else None,
            submitted=job.submitted,
            started=job.started,
            first_token=job.first_token,
            ended=job.ended if job.ended is not None else time.monotonic(),
        )

    def usage(self) -> Usage:
        """Tokens of the request; a stop token is counted though not shown."""
        usage: Usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
        }
        if self._predicted:
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": sum(count.accepted for count in self._predicted),
                "rejected_prediction_tokens": sum(count.rejected for count in self._predicted),
            }
        return usage

    def speculation(self) -> SpeculationStats:
        """What speculation did; the first token of an answer comes from its prompt and belongs to no step."""
        steps = sum(self._acceptance_lengths)
        return {
            "steps": steps,
            "tokens_per_step": round(self._step_tokens / steps, 4) if steps > 0 else None,
            "acceptance_lengths": list(self._acceptance_lengths),
            "drafted": self._drafted.total(),
            "accepted": self._accepted.total(),
            "by_source": {
                source: {"drafted": count, "accepted": self._accepted[source]}
                for source, count in sorted(self._drafted.items())
            },
        }


@dataclass
class Answer:
    """One answer as it grows: tokens in, text out, everything counted on the way.

    text:      where tokens become text and stop strings are found.
    tally:     of the request; several answers may share it.
    echo:      the prompt, when the answer is to begin with it.
    scored:    whether tokens are reported with their log-probabilities.
    sibling:   the first answer to the same prompt, which paid for it; None for that one itself.
    predicted: counts what of a predicted output the answer holds; None when nothing was predicted.
    recorder:  records each step; None when nobody asked for that.
    """

    text: TextStream
    tally: Tally
    echo: Echo | None
    scored: bool
    sibling: "Answer | None"
    predicted: PredictionCount | None = None
    recorder: Recorder | None = None
    finish_reason: FinishReason | None = None
    _prompt_logprobs: Sequence[TokenLogprobs] | None = None
    _logprob: float = 0.0
    _tokens: int = 0
    _has_begun: bool = False
    _was_stopped: bool = False

    @property
    def mean_logprob(self) -> float:
        """How likely the model found the answer, in nats per token; known when log-probabilities were asked for."""
        return self._logprob / max(1, self._tokens)

    def take(self, delta: TokenDelta) -> Piece:
        """Count a delta and return what of it may be shown already."""
        has_stop_token = delta.finish_reason == "stop"
        shown = delta.tokens[:-1] if has_stop_token else delta.tokens
        piece = self.text.push(shown)
        used = piece.tokens_used if piece.stopped else len(delta.tokens)
        self._was_stopped = piece.stopped
        self.finish_reason = "stop" if piece.stopped else delta.finish_reason
        self.tally.count(delta, used, is_prompt_new=self.sibling is None)
        if self.predicted is not None:
            self.predicted.take(delta.tokens[:used])
        logprobs = delta.logprobs[:used] if delta.logprobs is not None else []
        self._tokens += len(logprobs)
        self._logprob += sum(entry.logprob for entry in logprobs)
        if delta.prompt is not None:
            self._prompt_logprobs = delta.prompt.logprobs
        records = self.recorder.take(delta, used, piece.stopped) if self.recorder is not None else ()
        return self._opening() + Piece(piece.text, self._score(shown, piece.offsets, logprobs), records)

    def rest(self) -> Piece:
        """Text that was held back until the end was known."""
        return Piece("" if self._was_stopped else self.text.finish(), () if self.scored else None)

    def _opening(self) -> Piece:
        """The prompt, before the first piece of an answer that echoes it."""
        nothing = Piece("", () if self.scored else None)
        if self.echo is None or self._has_begun:
            return nothing
        self._has_begun = True
        if not self.scored:
            return Piece(self.echo.text, None)
        found = self._prompt_logprobs if self.sibling is None else self.sibling._prompt_logprobs
        scores = [None, *(found if found is not None else [])]
        tokens = zip(self.echo.tokens, self.echo.offsets, scores, strict=True)
        return Piece(self.echo.text, tuple(ScoredToken(*token) for token in tokens))

    def _score(
        self, tokens: Sequence[int], offsets: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> tuple[ScoredToken, ...] | None:
        """The tokens with an offset, which are those of the answer."""
        if not self.scored:
            return None
        before = len(self.echo.text) if self.echo is not None else 0
        # a stop token has a log-probability and is not shown
        entries = zip(tokens, offsets, logprobs, strict=False)
        return tuple(ScoredToken(token, before + offset, score) for token, offset, score in entries)
