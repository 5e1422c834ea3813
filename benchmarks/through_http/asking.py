"""Peers behind HTTP, asked for one streamed answer at a time, with the time at which each part of it arrived.

Lines are only noted while they arrive and read afterwards, so that the client takes little of what it measures. Prompts
are token ids for every peer, and no peer may find rows of an earlier prompt in its cache.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any, Literal, Protocol

from medusa_core.config import SpeculationParams
from medusa_core.engine import Engine
from medusa_core.errors import EngineError
from medusa_core.evaluation.answers import EnginePeer
from medusa_core.evaluation.prompts import Prompt
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec

__all__ = [
    "EngineAlone",
    "GeneratePeer",
    "LlamaPeer",
    "MedusaPeer",
    "StreamPeer",
    "Streamed",
    "WorkerClock",
    "spelt",
    "worker_clock",
]

LOCAL = "127.0.0.1"
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Streamed:
    """One answer as its client saw it.

    num_tokens: of the answer, a stop token included.
    first_s:    from the request to its first text; last_s to the end.
    steps:      verifying passes behind the first token; None where the peer does not tell.
    worker_s:   seconds of these steps by the worker's own clock, from one to the next; None likewise.
    computed_s: what of that it computed, drafting to reading the result; None where nobody times the parts of a step.
    accepted:   drafted tokens that were accepted, bonus not included, by who drafted them.
    """

    text: str
    num_tokens: int
    first_s: float
    last_s: float
    steps: int | None = None
    worker_s: float | None = None
    computed_s: float | None = None
    accepted: Mapping[str, int] = field(default_factory=dict)

    @property
    def step_tokens(self) -> int:
        """Tokens behind the first."""
        return self.num_tokens - 1

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self.last_s - self.first_s


class StreamPeer(Protocol):
    """Answers a prompt, and is timed by its client."""

    def ask(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Streamed:
        """One answer, from an empty cache."""
        ...


def _stream(port: int, path: str, body: Mapping[str, Any]) -> tuple[list[float], list[dict[str, Any]]]:
    """Server-sent events of a request, and the seconds after it at which each arrived.

    Raises EngineError for another status than 200, and for an error among the events.
    """
    connection = HTTPConnection(LOCAL, port, timeout=TIMEOUT_S)
    payload = json.dumps(body).encode()
    try:
        started = time.perf_counter()
        connection.request("POST", path, payload, {"Content-Type": "application/json"})
        response = connection.getresponse()
        arrivals, lines = [], []
        while line := response.readline():
            if line.startswith(b"data: "):
                arrivals.append(time.perf_counter() - started)
                lines.append(line)
        if response.status != 200:
            raise EngineError(f"POST {path} was answered with status {response.status}")
    finally:
        connection.close()
    texts = [line.removeprefix(b"data: ").strip() for line in lines]
    events = [json.loads(text) for text in texts if text != b"[DONE]"]
    if not events or "error" in events[-1]:
        raise EngineError(f"POST {path} gave no answer: {events[-1] if events else 'the stream is empty'}")
    return arrivals[: len(events)], events


@dataclass(frozen=True)
class MedusaPeer:
    """Our own server, speculating in one way."""

    port: int
    model: str
    speculation: Mapping[str, Any]

    def ask(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Streamed:
        """See StreamPeer.ask."""
        self._forget(prompt)
        before = self._clock()
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(prompt.tokens),
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            "speculation": dict(self.speculation),
        }
        if sampling.temperature > 0.0:
            body["seed"] = sampling.seed  # without one the server's choice of sizes learns from answer to answer
        arrivals, events = _stream(self.port, "/v1/completions", body)
        after = self._clock()
        usage = events[-1]["usage"]
        if usage["prompt_tokens_details"]["cached_tokens"] > 0:
            raise EngineError("the server had rows of this prompt in its cache; start it with no prefix cache")
        # the event before the usage says why the answer ended
        speculation = events[-2]["speculation"]
        return Streamed(
            text="".join(choice["text"] for event in events for choice in event["choices"]),
            num_tokens=usage["completion_tokens"],
            first_s=arrivals[0],
            last_s=arrivals[-2],
            steps=speculation["steps"],
            worker_s=after.whole_s - before.whole_s,
            computed_s=after.parts_s - before.parts_s if after.parts_s > 0.0 else None,
            accepted={source: counts["accepted"] for source, counts in speculation["by_source"].items()},
        )

    def _forget(self, prompt: Prompt) -> None:
        """Put another prompt into the cache, one that shares no row with this one."""
        other = 1 if prompt.tokens[0] == 0 else 0
        body = {"model": self.model, "prompt": [other], "max_tokens": 1, "stream": True}
        _stream(self.port, "/v1/completions", body)

    def _clock(self) -> "WorkerClock":
        """What the worker's clock shows."""
        connection = HTTPConnection(LOCAL, self.port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", "/metrics")
            return worker_clock(connection.getresponse().read().decode())
        finally:
            connection.close()


@dataclass(frozen=True)
class WorkerClock:
    """Seconds of all steps so far: whole, from one to the next, and of their parts where those are timed."""

    whole_s: float
    parts_s: float


def worker_clock(metrics: str) -> WorkerClock:
    """Seconds that steps took, from what Prometheus would read."""
    whole, parts = (
        sum(float(value) for value in re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", metrics, re.MULTILINE))
        for name in ("medusa_decode_time_seconds_sum", "medusa_step_seconds_sum")
    )
    return WorkerClock(whole, parts)


@dataclass(frozen=True)
class GeneratePeer:
    """transformers.generate behind the plain server of generate_server.py."""

    port: int
    way: Literal["dynamic", "static", "lookup"]
    codec: TextCodec
    stop_tokens: frozenset[int]

    def ask(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Streamed:
        """See StreamPeer.ask; greedy only, since its noise would be another."""
        assert sampling.temperature == 0.0, "peers with noise of their own are asked greedily"
        body = {"prompt": list(prompt.tokens), "max_tokens": max_tokens, "way": self.way}
        arrivals, events = _stream(self.port, "/generate", body)
        tokens = [token for event in events[:-1] for token in event["tokens"]]
        steps: int = events[-1]["steps"]
        text = spelt(tokens, self.codec, self.stop_tokens)
        return Streamed(text, len(tokens), arrivals[0], arrivals[-1], steps)


@dataclass(frozen=True)
class LlamaPeer:
    """llama.cpp's own server."""

    port: int
    codec: TextCodec
    stop_tokens: frozenset[int]

    def ask(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Streamed:
        """See StreamPeer.ask; greedy only, since its noise would be another."""
        assert sampling.temperature == 0.0, "peers with noise of their own are asked greedily"
        body = {
            "prompt": list(prompt.tokens),
            "n_predict": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": False,
        }
        arrivals, events = _stream(self.port, "/completion", body)
        tokens = [token for event in events if not event["stop"] for token in event["tokens"]]
        end = events[-1]
        num_tokens: int = end["tokens_predicted"]
        # it counts the drafts that were accepted, where it drafts; every other token took a step
        steps = num_tokens - 1 - end["timings"].get("draft_n_accepted", 0)
        return Streamed(spelt(tokens, self.codec, self.stop_tokens), num_tokens, arrivals[0], arrivals[-1], steps)


def spelt(tokens: Sequence[int], codec: TextCodec, stop_tokens: frozenset[int]) -> str:
    """The text of an answer as our server would send it."""
    shown = tokens[:-1] if tokens and tokens[-1] in stop_tokens else tokens
    stream = codec.stream()
    return stream.push(list(shown)).text + stream.finish()


class EngineAlone:
    """Our engine in this very process, without a server: what the worker would do if nobody had to be told."""

    def __init__(self, engine: Engine, speculation: SpeculationParams, codec: TextCodec) -> None:
        self._peer, self._codec = EnginePeer(engine, speculation), codec
        self._stops = frozenset(engine.info.eos_token_ids)

    def ask(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Streamed:
        """See StreamPeer.ask."""
        started = time.perf_counter()
        answer = self._peer.answer(prompt, sampling, max_tokens)
        last = time.perf_counter() - started
        return Streamed(
            spelt(answer.tokens, self._codec, self._stops),
            len(answer.tokens),
            last - answer.seconds,
            last,
            len(answer.step_seconds),
            sum(answer.step_seconds),
            accepted=Counter(answer.accepted),
        )
