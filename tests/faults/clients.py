"""Who sends the traffic and reads what comes of it.

`drive` sends requests from several clients at once, some of whom leave, and `differences` compares what came back with
what the same request brings on a server that does nothing else.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.faults.traffic import Ask
from tests.faults.wire import Head, Wire

# Log-probabilities are sums over another number of rows at once, which rounds otherwise.
NEAR = 1e-3
# Longer than any queue takes here; who waits longer hangs.
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Choice:
    """One answer, however it was sent.

    calls:  name and arguments of each call.
    scores: log-probability of every token that was told one.
    """

    text: str
    calls: tuple[tuple[str, str], ...]
    tokens: tuple[str, ...]
    scores: tuple[float | None, ...]
    reason: str


@dataclass
class Seen:
    """What a client saw of its request.

    status:   0 while none has arrived.
    choices:  of an answer that has ended, empty otherwise.
    first_s:  seconds from the first try to the first byte of the answer.
    turned_away: how often the queue was full.
    """

    ask: Ask
    status: int = 0
    choices: tuple[Choice, ...] = ()
    usage: Mapping[str, Any] = field(default_factory=dict)
    has_left: bool = False
    first_s: float = math.nan
    whole_s: float = math.nan
    turned_away: int = 0
    problem: str | None = None

    @property
    def is_whole(self) -> bool:
        return bool(self.choices)

    @property
    def is_refused(self) -> bool:
        """As a wrong request should be."""
        return self.ask.is_wrong and self.status == 400


async def drive(
    port: int, requests: Iterable[Ask], clients: int, on_end: Callable[[Seen], None] | None = None
) -> list[Seen]:
    """Send all requests from so many clients at once, each of which asks one after another; what each one saw.

    Who is turned away comes again when the server said to. A request that hangs ends with a problem.
    """
    left: Iterator[Ask] = iter(requests)
    seen: list[Seen] = []

    async def one_client() -> None:
        client = _Client(port)
        try:
            for ask in left:
                seen.append(await client.ask(ask))
                if on_end is not None:
                    on_end(seen[-1])
        finally:
            client.leave(False)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one_client())
    return seen


class _Client:
    """Keeps its connection from request to request, as SDKs do."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._wire: Wire | None = None

    def leave(self, abruptly: bool) -> None:
        if self._wire is not None:
            self._wire.leave(abruptly)
            self._wire = None

    async def ask(self, ask: Ask) -> Seen:
        seen = Seen(ask)
        started = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (wait_s := await self._attempt(ask, seen, started)) is not None:
                    seen.turned_away += 1
                    await asyncio.sleep(wait_s)
        except TimeoutError:
            seen.problem = f"nothing more came within {PATIENCE_S:g} s"
            self.leave(True)
        except (AssertionError, OSError, LookupError, ValueError) as error:
            seen.problem = f"{type(error).__name__}: {error}"
            self.leave(True)
        return seen

    async def _attempt(self, ask: Ask, seen: Seen, started: float) -> float | None:
        """Ask once; returns after how many seconds to come again, None when there is no need."""
        if self._wire is None or not self._wire.can_go_on:
            self.leave(False)
            self._wire = await Wire.connect(self._port)
        await self._wire.send(ask.path, ask.body)
        leaving = ask.leaving
        limit_s = leaving.after_s if leaving is not None and leaving.stage != "in the middle" else None
        answering = asyncio.create_task(self._answer(self._wire, ask, seen, started))
        if limit_s is not None:
            waited = answering if not ask.is_streamed else asyncio.create_task(_has_first(seen, answering))
            await asyncio.wait((waited,), timeout=limit_s)
            if not waited.done():
                seen.has_left = True
                self.leave(leaving.abruptly if leaving is not None else False)
                for task in (waited, answering):
                    task.cancel()
                await asyncio.gather(waited, answering, return_exceptions=True)
                return None
        try:
            head = await answering
        finally:
            answering.cancel()
        if seen.has_left:
            return None
        if head.status in (429, 503):
            return float(head.headers["retry-after"])
        seen.whole_s = time.monotonic() - started
        return None

    async def _answer(self, wire: Wire, ask: Ask, seen: Seen, started: float) -> Head:
        head = await wire.head()
        seen.status = head.status
        if head.status == 200:
            seen.first_s = time.monotonic() - started
        if head.status != 200 or not ask.is_streamed:
            content = b"".join([part async for part in wire.parts()])
            if head.status == 200 and not ask.is_wrong:
                _read_whole(json.loads(content), seen)
            elif head.status not in (429, 503) and not (ask.is_wrong and head.status == 400):
                seen.problem = f"status {head.status}: {content[:500]!r}"
            return head
        events = []
        leaves_at = math.inf
        async for event in wire.events():
            if leaves_at == math.inf and ask.leaving is not None and ask.leaving.stage == "in the middle":
                leaves_at = time.monotonic() + ask.leaving.after_s
            if time.monotonic() >= leaves_at:
                seen.has_left = True
                self.leave(ask.leaving.abruptly if ask.leaving is not None else False)
                return head
            events.append(event)
        _read_stream(events, seen)
        return head


async def _has_first(seen: Seen, answering: "asyncio.Task[Head]") -> None:
    while not answering.done() and seen.status == 0:
        await asyncio.sleep(0.001)


def _scores_of(logprobs: Any) -> tuple[list[str], list[float | None]]:
    """Tokens and log-probabilities in the shape of either endpoint."""
    if logprobs is None:
        return [], []
    if "content" in logprobs:
        entries = logprobs["content"]
        return [entry["token"] for entry in entries], [entry["logprob"] for entry in entries]
    return logprobs["tokens"], logprobs["token_logprobs"]


def _read_whole(answer: Mapping[str, Any], seen: Seen) -> None:
    choices = []
    for choice in answer["choices"]:
        message = choice.get("message", {"content": choice.get("text")})
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
        tokens, scores = _scores_of(choice["logprobs"])
        text = message["content"] if message["content"] is not None else ""
        choices.append(Choice(text, tuple(calls), tuple(tokens), tuple(scores), choice["finish_reason"]))
    seen.choices, seen.usage = tuple(choices), answer["usage"]


def _read_stream(events: Sequence[Mapping[str, Any]], seen: Seen) -> None:
    """Put the chunks of a stream together; each must belong to one answer, which ends once."""
    if events and "error" in events[-1]:
        seen.problem = f"the stream ended with {events[-1]['error']}"
        return
    assert len({event["id"] for event in events}) == 1, "chunks of several answers in one stream"
    seen.usage = events[-1]["usage"]
    pieces: dict[int, list[Mapping[str, Any]]] = {}
    for event in events[:-1]:
        for choice in event["choices"]:
            pieces.setdefault(choice["index"], []).append(choice)
    seen.choices = tuple(_put_together(pieces[index]) for index in sorted(pieces))


def _put_together(chunks: Sequence[Mapping[str, Any]]) -> Choice:
    reasons = [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"] is not None]
    assert len(reasons) == 1 and chunks[-1]["finish_reason"] is not None, f"an answer ended {len(reasons)} times"
    text, tokens, scores = "", [], []
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        delta = chunk.get("delta", {"content": chunk.get("text")})
        text += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            name_and_arguments = calls.setdefault(call["index"], ["", ""])
            name_and_arguments[0] += call["function"].get("name") or ""
            name_and_arguments[1] += call["function"].get("arguments") or ""
        more_tokens, more_scores = _scores_of(chunk["logprobs"])
        tokens += more_tokens
        scores += more_scores
    called = tuple((name, arguments) for name, arguments in calls.values())
    return Choice(text, called, tuple(tokens), tuple(scores), reasons[0])


async def alone(port: int, requests: Iterable[Ask]) -> dict[int, Seen]:
    """What each request brings in one piece on a server that does nothing else, by its number."""
    seen = await drive(port, [ask.alone for ask in requests], clients=1)
    assert not (wrong := [f"{one.ask.name}: {one.problem}" for one in seen if not one.is_whole]), wrong
    return {one.ask.number: one for one in seen}


def differences(seen: Iterable[Seen], solo: Mapping[int, Seen]) -> list[str]:
    """One line for each finished answer that is not its solo answer, and for each request that failed."""
    found = []
    for one in seen:
        if one.problem is not None:
            found.append(f"{one.ask.name}: {one.problem}")
        elif one.is_whole and (difference := _difference(one, solo[one.ask.number])) is not None:
            found.append(f"{one.ask.name}: {difference}; it asked {json.dumps(one.ask.body)}")
    return found


def _difference(one: Seen, expected: Seen) -> str | None:
    if len(one.choices) != len(expected.choices):
        return f"{len(one.choices)} answers instead of {len(expected.choices)}"
    for index, (got, wanted) in enumerate(zip(one.choices, expected.choices, strict=True)):
        if replace(got, scores=()) != replace(wanted, scores=()):
            return f"answer {index} is {got} and alone {wanted}"
        pairs = zip(got.scores, wanted.scores, strict=True)
        if not all(a == b or (a is not None and b is not None and abs(a - b) < NEAR) for a, b in pairs):
            return f"answer {index} has the scores {got.scores} and alone {wanted.scores}"
    for name in ("prompt_tokens", "completion_tokens"):
        if one.usage[name] != expected.usage[name]:
            return f"{name} is {one.usage[name]} and alone {expected.usage[name]}"
    return None
