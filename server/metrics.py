"""Prometheus metrics, collected in the server's process: names, labels and buckets in one place.

A series that is born with its first event hides that event: a rate needs a value before it. So every label with a
closed set of values begins with all of them, at zero.
"""

import math
from collections.abc import Iterable, Mapping
from importlib import metadata
from itertools import product

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.worker.messages import PromptStats, StepStats, WorkerInfo

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "ModelMetrics"]

QUEUE_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
GAP_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 2.5, 5, 10, 20, 30, 60, 120, 240, 480)
# The sizes that trees have unless somebody names others: each its own bucket.
NODES = (1, 2, 4, 8, 16, 32, 64, 128)
PHASE_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
# One worker per server; replicas are told apart by their scrape target.
WORKER = "0"

# How many plain steps the estimate of one remembers, and how many times as long as it a step may count: one that
# stalled says nothing of the others.
RECENT_STEPS = 64
LONGEST_STALL = 16

# The values of closed labels. A step's phases are none of them: where steps are recorded nobody can time them.
MODES = ("tree", "static", "chain", "off")
SOURCES = ("heads", "lookup", "recycling", "prediction", "grammar")
ENDPOINTS = ("chat", "completions")
FINISH_REASONS = ("stop", "length", "tool_calls", "abort", "error", "timeout")
REJECTIONS = ("queue_full", "too_large", "auth", "invalid", "draining", "rate_limited", "connections")
STAGES = ("queued", "prefill", "decode")
RESTARTS = ("crash", "oom", "hang", "manual")


class _WithoutBirthdays(Collector):
    """A registry without the time at which each series was made: half of the page, and Prometheus has no use for it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def _one_two_five(limit: int) -> list[float]:
    """1, 2, 5, 10, ... up to and including the first value that reaches the limit."""
    series: list[float] = []
    for exponent in range(math.ceil(math.log10(max(limit, 1))) + 1):
        for factor in (1, 2, 5):
            series.append(float(factor * 10**exponent))
            if series[-1] >= limit:
                return series
    return series


class ModelMetrics:
    """Everything counted per model; its buckets need to know the tree's depth and the context."""

    def __init__(self, registry: CollectorRegistry, model_name: str, info: WorkerInfo) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"medusa_{name}", text, ["model_name"], registry=registry).labels(model_name)

        def histogram(name: str, text: str, buckets: list[float] | tuple[float, ...]) -> Histogram:
            family = Histogram(f"medusa_{name}", text, ["model_name"], buckets=buckets, registry=registry)
            return family.labels(model_name)

        lengths = [float(length) for length in range(info.max_depth + 2)]
        sizes = _one_two_five(info.max_context)
        self.tokens_per_step = histogram("tokens_per_step", "tokens emitted by one verifying forward", lengths[1:])
        self.acceptance_length = histogram(
            "acceptance_length", "accepted drafts of one step, without the bonus", lengths[:-1]
        )
        self.tree_nodes = histogram("tree_nodes", "used nodes of one verified tree, root included", NODES)
        self.drafts = counter("spec_decode_num_drafts", "trees verified")
        self.draft_tokens = counter("spec_decode_num_draft_tokens", "draft tokens verified")
        self.accepted_tokens = counter("spec_decode_num_accepted_tokens", "draft tokens accepted and delivered")
        self.request_prompt_tokens = histogram("request_prompt_tokens", "prompt length", sizes)
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "tokens of all answers to a request", sizes
        )
        self.time_to_first_token = histogram("time_to_first_token_seconds", "arrival to first token", FIRST_TOKEN_S)
        self.inter_token_latency = histogram("inter_token_latency_seconds", "step gap shared by its tokens", GAP_S)
        self.inter_step_latency = histogram("inter_step_latency_seconds", "gap between two steps", GAP_S)
        self.e2e_latency = histogram("e2e_request_latency_seconds", "arrival to last token", REQUEST_S)
        self.prefill_time = histogram("prefill_time_seconds", "time in prefill", REQUEST_S)
        self.decode_time = histogram("decode_time_seconds", "time in decoding steps", REQUEST_S)
        self.prompt_tokens = counter("prompt_tokens", "prompt tokens answered")
        self.generation_tokens = counter("generation_tokens", "tokens emitted")
        self.cache_queries = counter("prompt_cache_queries", "prompts looked up in the prefix cache")
        self.cache_hits = counter("prompt_cache_hits", "prompts with a cached prefix")
        self.cache_hit_tokens = counter("prompt_cache_hit_tokens", "prompt tokens found in the cache")
        self._model_name = model_name
        self._context = info.max_context
        self._plain_step_s = info.plain_step_s
        self._plain_step = Gauge(
            "medusa_plain_step_seconds",
            "a step that decides one token: as timed at the start, then as seen in traffic",
            ["model_name"],
            registry=registry,
        ).labels(model_name)
        self._plain_step.set(info.plain_step_s)
        self._cache_usage = Gauge(
            "medusa_kv_cache_usage_ratio", "rows of the cache in use, 0 to 1", ["model_name"], registry=registry
        ).labels(model_name)
        self._phases = Histogram(
            "medusa_step_seconds",
            "parts of a step, where the host can time them",
            ["model_name", "phase"],
            buckets=PHASE_S,
            registry=registry,
        )
        labels = ["model_name", "head"]
        self._head_correct = Counter(
            "medusa_head_top1_correct", "first guesses of a head that were emitted", labels, registry=registry
        )
        self._head_evaluated = Counter(
            "medusa_head_evaluated", "first guesses of a head behind accepted tokens", labels, registry=registry
        )
        labels = ["model_name", "source"]
        self._drafted = Counter("medusa_drafted_tokens", "draft tokens verified, by source", labels, registry=registry)
        self._accepted = Counter(
            "medusa_accepted_tokens", "draft tokens accepted, by source", labels, registry=registry
        )
        labels = ["model_name", "mode"]
        self._steps = Counter("medusa_decode_steps", "verifying forwards", labels, registry=registry)
        self._step_seconds = Counter(
            "medusa_decode_seconds", "time of the steps whose tokens were delivered", labels, registry=registry
        )
        self._plain_seconds = Counter(
            "medusa_plain_decode_seconds",
            "what plain decoding would have taken for the tokens of these steps",
            labels,
            registry=registry,
        )
        self._accepted_per_position = Counter(
            "medusa_spec_decode_num_accepted_tokens_per_pos",
            "draft tokens accepted at a depth, counted from 0",
            ["model_name", "position"],
            registry=registry,
        )
        self._requests = Counter(
            "medusa_requests",
            "requests by the way they ended",
            ["model_name", "endpoint", "finish_reason"],
            registry=registry,
        )
        self._begin_at_zero(info)

    def _begin_at_zero(self, info: WorkerInfo) -> None:
        for mode in MODES:
            self._steps.labels(self._model_name, mode)
            self._step_seconds.labels(self._model_name, mode)
            self._plain_seconds.labels(self._model_name, mode)
        for source in SOURCES:
            self.count_source(source, 0, 0)
        for head in range(1, info.num_heads + 1):
            self._head_evaluated.labels(self._model_name, str(head))
            self._head_correct.labels(self._model_name, str(head))
        for position in range(info.max_depth):
            self._accepted_per_position.labels(self._model_name, str(position))
        for endpoint, reason in product(ENDPOINTS, FINISH_REASONS):
            self._requests.labels(self._model_name, endpoint, reason)

    def count_prompt(self, prompt: PromptStats, waited_s: float) -> None:
        """A prompt was computed and its first token has arrived, waited_s after the request."""
        self.time_to_first_token.observe(waited_s)
        self.prompt_tokens.inc(prompt.prompt_tokens)
        self.request_prompt_tokens.observe(prompt.prompt_tokens)
        self.prefill_time.observe(prompt.prefill_s)
        self.cache_queries.inc()
        self.cache_hit_tokens.inc(prompt.cached_tokens)
        if prompt.cached_tokens > 0:
            self.cache_hits.inc()

    def count_step(self, mode: str, step: StepStats, emitted: int, gap_s: float) -> None:
        """A step of whose tokens the first `emitted` were delivered, gap_s after the one before.

        mode: the request's; a step that checked no draft is counted as plain decoding, whatever was asked for.
        """
        drafted, accepted = sum(step.drafted.values()), len(step.accepted[:emitted])
        done_as = mode if drafted > 0 else "off"
        self._steps.labels(self._model_name, done_as).inc()
        self._step_seconds.labels(self._model_name, done_as).inc(step.seconds)
        self._plain_seconds.labels(self._model_name, done_as).inc(self._worth_s(step.seconds, emitted, drafted > 0))
        for phase, seconds in step.phases.items():
            self._phases.labels(self._model_name, phase).observe(seconds)
        for head, is_hit in enumerate(step.head_hits[:emitted], start=1):
            self._head_evaluated.labels(self._model_name, str(head)).inc()
            self._head_correct.labels(self._model_name, str(head)).inc(1 if is_hit else 0)
        self.tokens_per_step.observe(emitted)
        self.acceptance_length.observe(accepted)
        self.tree_nodes.observe(drafted + 1)
        self.inter_step_latency.observe(gap_s)
        for _ in range(emitted):
            self.inter_token_latency.observe(gap_s / emitted)
        if drafted == 0:
            return
        self.drafts.inc()
        self.draft_tokens.inc(drafted)
        self.accepted_tokens.inc(accepted)
        for position in range(accepted):
            self._accepted_per_position.labels(self._model_name, str(position)).inc()

    def _worth_s(self, seconds: float, emitted: int, is_drafted: bool) -> float:
        """What a step's tokens would have taken one by one.

        The start times a plain step behind a short prompt on an idle machine; those that traffic brings, where drafting
        was not asked for or would not have paid, know of long prompts and of what else runs, so they are learnt from.
        """
        if not is_drafted:
            known_s = self._plain_step_s if self._plain_step_s > 0 else seconds
            self._plain_step_s = known_s + (min(seconds, LONGEST_STALL * known_s) - known_s) / RECENT_STEPS
            self._plain_step.set(self._plain_step_s)
        is_known = is_drafted and self._plain_step_s > 0
        return emitted * self._plain_step_s if is_known else seconds

    def set_cache_rows(self, rows: int) -> None:
        """So many tokens of a sequence are in the cache, or about to be."""
        self._cache_usage.set(min(1.0, rows / self._context))

    def count_source(self, source: str, drafted: int, accepted: int) -> None:
        """Drafts of one source in a delivered step."""
        self._drafted.labels(self._model_name, source).inc(drafted)
        self._accepted.labels(self._model_name, source).inc(accepted)

    def count_request(self, endpoint: str, finish_reason: str) -> None:
        """A request has ended: stop, length, tool_calls, timeout, abort or error."""
        self._requests.labels(self._model_name, endpoint, finish_reason).inc()


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, model_name: str, queue_capacity: int) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._model_name = model_name
        self._model: ModelMetrics | None = None
        self._worker_pid: int | None = None
        # its memory, time and files, as the operating system counts them; nothing while there is none
        ProcessCollector("medusa_worker", lambda: str(self._worker_pid), registry=self._registry)

        def family(kind: type[Counter], name: str, text: str, labels: list[str]) -> Counter:
            return kind(f"medusa_{name}", text, labels, registry=self._registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"medusa_{name}", text, ["model_name"], registry=self._registry).labels(model_name)

        self._http = family(Counter, "http_requests", "HTTP requests answered", ["handler", "method", "status"])
        self._rejected = family(Counter, "requests_rejected", "requests turned away", ["reason"])
        self._cancelled = family(Counter, "requests_cancelled", "requests whose client left", ["stage"])
        self._restarts = family(Counter, "worker_restarts", "workers started again", ["worker", "reason"])
        self._up = Gauge("medusa_worker_up", "1 while the worker can answer", ["worker"], registry=self._registry)
        self._build = Gauge(
            "medusa_build_info", "always 1; what is running", ["version", "torch", "device"], registry=self._registry
        )
        self._heartbeat = Gauge(
            "medusa_worker_last_heartbeat_seconds",
            "Unix time of the worker's last sign of life",
            ["worker"],
            registry=self._registry,
        )
        self._memory = Gauge(
            "medusa_device_memory_bytes", "memory of the device, by kind", ["kind"], registry=self._registry
        )
        self.running = gauge("num_requests_running", "requests being decoded")
        self.waiting = gauge("num_requests_waiting", "requests in the queue")
        self.load_seconds = gauge("model_load_seconds", "time the model took to load")
        gauge("queue_capacity", "requests the queue can hold").set(queue_capacity)
        self.queue_time = Histogram(
            "medusa_request_queue_time_seconds",
            "arrival in the queue to the worker",
            ["model_name"],
            buckets=QUEUE_S,
            registry=self._registry,
        ).labels(model_name)
        self.set_worker_up(False)
        for label, values in ((self._rejected, REJECTIONS), (self._cancelled, STAGES)):
            for value in values:
                label.labels(value)
        for reason in RESTARTS:
            self._restarts.labels(WORKER, reason)

    def expect_http(self, handler: str, method: str, statuses: Iterable[int]) -> None:
        """Answers of a route that begin at zero, so that already the first of a kind is a rise."""
        for status in statuses:
            self._http.labels(handler, method, str(status))

    def of_model(self, info: WorkerInfo) -> ModelMetrics:
        """The model's own metrics; made when the first worker is ready, kept when it is replaced."""
        if self._model is None:
            self._model = ModelMetrics(self._registry, self._model_name, info)
            self._build.labels(metadata.version("medusa-server"), metadata.version("torch"), info.device).set(1)
        return self._model

    def count_http(self, handler: str, method: str, status: int) -> None:
        """One HTTP exchange; `handler` is the route's template, never the client's path."""
        self._http.labels(handler, method, str(status)).inc()

    def count_rejected(self, reason: str) -> None:
        """A request was turned away, for one of REJECTIONS."""
        self._rejected.labels(reason).inc()

    def count_cancelled(self, stage: str) -> None:
        """A client left while its request was queued, in prefill or in decode."""
        self._cancelled.labels(stage).inc()

    def count_restart(self, reason: str) -> None:
        """The worker was started again, for one of RESTARTS."""
        self._restarts.labels(WORKER, reason).inc()

    def set_worker_up(self, is_up: bool) -> None:
        """Whether the worker can answer."""
        self._up.labels(WORKER).set(1 if is_up else 0)

    def watch_worker(self, pid: int | None) -> None:
        """Tell of this process as the worker's from now on."""
        self._worker_pid = pid

    def count_heartbeat(self, now_s: float, memory: Mapping[str, int]) -> None:
        """The worker lives, at this Unix time, and its device holds so many bytes of each kind."""
        self._heartbeat.labels(WORKER).set(now_s)
        for kind, held in memory.items():
            self._memory.labels(kind).set(held)

    def expose(self) -> bytes:
        """The text format of Prometheus; its content type is CONTENT_TYPE_LATEST."""
        return generate_latest(_WithoutBirthdays(self._registry))
