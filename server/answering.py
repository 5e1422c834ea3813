"""From a checked request to its answer: queue it, follow it, respond."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from medusa_core.errors import EngineError, MedusaError, RequestTimeout, UnknownModel
from medusa_core.text import TextCodec
from server.answer import Answer, Piece, Tally
from server.asking import Wanted
from server.auth import KEY_LABEL
from server.exchange import CLIENT_CLOSED_REQUEST, Exchange, exchange_of
from server.grammars import Grammars
from server.metrics import Metrics
from server.predicted import PredictionCount
from server.schemas.common import GenerationFields
from server.schemas.usage import SpeculationStats, Usage
from server.step_records import MOST_RECORDS, StepRecords
from server.streaming import stream_response
from server.worker.client import WorkerClient
from server.worker.job import Job
from server.worker.messages import (
    FinishReason,
    TokenDelta,
    WorkerInfo,
)

__all__ = [
    "AnswerShape",
    "Answering",
    "ClientGone",
    "ServedNames",
    "Whole",
    "fingerprint",
    "unless_gone",
]

T = TypeVar("T")

# The default pool of threads has five and more.
FORMS_AT_ONCE = 2


class ClientGone(Exception):
    """The client has closed its connection; there is nobody to answer."""


@dataclass(frozen=True)
class Whole:
    """A finished answer."""

    piece: Piece
    reason: FinishReason


class AnswerShape(Protocol):
    """How one endpoint writes an answer; one value per request, so ids and times agree in all chunks."""

    @property
    def endpoint(self) -> str:
        """Label of medusa_requests_total."""
        ...

    def whole(self, answers: Sequence[Whole], usage: Usage, stats: SpeculationStats) -> Mapping[str, Any]:
        """All answers, each in one piece."""
        ...

    def opening(self, index: int) -> Sequence[Mapping[str, Any]]:
        """Chunks before the first text of an answer."""
        ...

    def piece(self, index: int, piece: Piece) -> Sequence[Mapping[str, Any]]:
        """Chunks of what is new."""
        ...

    def finish(self, index: int, reason: FinishReason, stats: SpeculationStats | None) -> Sequence[Mapping[str, Any]]:
        """What was held back, and the chunk that says why an answer ended; statistics come with the last one."""
        ...

    def outcome(self, index: int, reason: FinishReason) -> str:
        """The finish_reason that the client is told, once the answer has been written."""
        ...

    def usage(self, usage: Usage) -> Mapping[str, Any]:
        """The extra chunk of stream_options.include_usage."""
        ...


def fingerprint(info: WorkerInfo) -> str:
    """What an answer to one seed depends on beside the request and the machine: the same string, the same answer.

    Heads and tree are not part of it: under the exact rule they change no token. An adapter that was merged into the
    base is, and how the base's weights are quantised.
    """
    device, version = info.device.partition(":")[0], metadata.version("medusa-server")
    adapter = info.adapter if info.adapter is not None else ""
    parts = info.model, info.dtype, device, version, info.quantization, adapter
    return "fp_" + hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`, or drop it and raise ClientGone as soon as the client closes its connection.

    The body must have been read: `receive` has nothing left to say but that the client left.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


@dataclass(frozen=True)
class ServedNames:
    """What clients may call the model.

    names:     each once; answers and metrics show the first, never what a client chose.
    takes_any: whether a request may name any other model and is answered all the same.
    """

    names: tuple[str, ...]
    takes_any: bool = False

    @property
    def shown(self) -> str:
        """The model's name in answers."""
        return self.names[0]

    def check(self, name: str) -> None:
        """Raises UnknownModel."""
        if not self.takes_any and name not in self.names:
            raise UnknownModel(name, list(self.names))


@dataclass(frozen=True)
class Answering:
    """What the generation endpoints share: the worker, the text codec, the metrics, the served names.

    timeout_s: seconds a request may take from its arrival to its last token.
    forms:     lets so many requests with a form be prepared at one time.
    """

    worker: WorkerClient
    codec: TextCodec
    grammars: Grammars
    metrics: Metrics
    names: ServedNames
    created: int
    timeout_s: float
    forms: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FORMS_AT_ONCE))

    def new_id(self, prefix: str) -> str:
        """A fresh id of an answer, such as chatcmpl-..."""
        return f"{prefix}-{uuid.uuid4().hex}"

    async def prepare(self, request: Request, body: GenerationFields, work: Callable[[], T]) -> T:
        """Do a request's work that takes a while, off the event loop, while its client and its time last.

        Raises QueueFull or NotReady before it begins, ClientGone and RequestTimeout while it goes on.
        """
        self.worker.check_room()
        arrived = exchange_of(request.scope).arrived
        left_s = self._timeout_of(body) - (time.monotonic() - arrived)
        try:
            preparing = self._prepare_form(work) if body.may_wish_form else asyncio.to_thread(work)
            return await unless_gone(request.receive, asyncio.wait_for(preparing, left_s))
        except TimeoutError:
            raise RequestTimeout(self._timeout_of(body)) from None
        except ClientGone:
            self.metrics.count_cancelled("queued")
            raise

    async def _prepare_form(self, work: Callable[[], T]) -> T:
        """Large forms take a second: however many come at once, they leave threads for requests without one."""
        await self.forms.acquire()
        working = asyncio.ensure_future(asyncio.to_thread(work))
        # not when nobody waits for it any more: the thread goes on
        working.add_done_callback(lambda _: self.forms.release())
        return await asyncio.shield(working)

    def _timeout_of(self, body: GenerationFields) -> float:
        return min(self.timeout_s, body.timeout_s) if body.timeout_s is not None else self.timeout_s

    async def respond(
        self,
        request: Request,
        body: GenerationFields,
        wanted: Sequence[Wanted],
        kept: int,
        is_scored: bool,
        shape: AnswerShape,
    ) -> Response:
        """Queue a checked request and answer it, streamed or whole.

        kept:      how many answers to each prompt are sent, the likeliest first; fewer than wanted only when whole.
        is_scored: whether tokens are reported with their log-probabilities.

        Nothing is sent before the first token: every refusal still has its own status.
        """
        info = self.worker.ready_info()
        salt = request.scope.get(KEY_LABEL)
        exchange = exchange_of(request.scope)
        mine = {"cache_salt": salt, "request_id": exchange.request_id}
        generates = [msgspec.structs.replace(one.generate, **mine) for one in wanted]
        job = self.worker.submit(generates, exchange.arrived, self._timeout_of(body))
        mode = wanted[0].generate.speculation.mode
        tally = Tally(
            metrics=self.metrics.of_model(info),
            mode="tree" if mode == "auto" else mode,
            endpoint=shape.endpoint,
            arrived=exchange.arrived,
        )
        exchange.tell = lambda: tally.generated(self.names.shown, job)
        steps = StepRecords(self.codec, None if body.stream else MOST_RECORDS) if body.wants_detail else None
        answers: list[Answer] = []
        for index, one in enumerate(wanted):
            sibling = answers[one.first] if one.first != index else None
            recorder = steps.recorder(index, one.text) if steps is not None else None
            answers.append(Answer(one.text, tally, one.echo, is_scored, sibling, _watched(one, tally), recorder))
        ignored = body.ignored_fields()
        headers = {"x-ignored-fields": ignored} if ignored is not None else {}
        is_streaming = False
        try:
            if not body.stream:
                wholes = await unless_gone(request.receive, self._collect(job, answers))
                chosen = _likeliest(answers, wanted, kept)
                sent, usage, stats = [wholes[index] for index in chosen], tally.usage(), tally.speculation()
                if steps is not None:
                    steps.tell(stats, chosen)
                # log-probabilities of many tokens are megabytes, and writing them takes a while
                content = await asyncio.to_thread(lambda: msgspec.json.encode(shape.whole(sent, usage, stats)))
                tally.close(shape.outcome(len(answers) - 1, wholes[-1].reason))
                return Response(content, headers=headers, media_type="application/json")
            first = await unless_gone(request.receive, _next(job))
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            chunks = self._chunks(first, job, answers, tally, shape, include_usage)
            is_streaming = True
            return stream_response(chunks, lambda: self._release(job, tally, exchange), headers)
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except MedusaError as error:
            tally.fail(error)
            raise
        finally:
            if not is_streaming:
                self._release(job, tally, exchange)

    def _release(self, job: Job, tally: Tally, exchange: Exchange) -> None:
        """The response is over; when its answers are not, the client has left."""
        if tally.error is not None:
            exchange.error = type(tally.error).__name__
        if tally.outcome is None:
            # the worker may have ended what the client did not wait for
            self.metrics.count_cancelled("decode" if job.stage == "ended" else job.stage)
            tally.close("abort")
        job.cancel()

    async def _pieces(
        self, first: tuple[int, TokenDelta] | None, job: Job, answers: Sequence[Answer]
    ) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces with the index of their answer; with an answer's last one its finish_reason is set.

        first: a delta that has been waited for already.
        """
        while answers[-1].finish_reason is None:
            index, delta = first if first is not None else await _next(job)
            first, answer = None, answers[index]
            if answer.finish_reason is not None:
                continue  # a stop string ended it, and the worker had not heard yet
            piece = answer.take(delta)
            if answer.finish_reason is not None:
                piece += answer.rest()
                job.skip(index)
            yield index, piece
        job.cancel()

    async def _collect(self, job: Job, answers: Sequence[Answer]) -> list[Whole]:
        pieces: list[list[Piece]] = [[] for _ in answers]
        async for index, piece in self._pieces(None, job, answers):
            pieces[index].append(piece)
        return [Whole(_joined(parts), _reason(answer)) for parts, answer in zip(pieces, answers, strict=True)]

    async def _chunks(
        self,
        first: tuple[int, TokenDelta],
        job: Job,
        answers: Sequence[Answer],
        tally: Tally,
        shape: AnswerShape,
        include_usage: bool,
    ) -> AsyncIterator[Mapping[str, Any]]:
        opened = -1
        try:
            async for index, piece in self._pieces(first, job, answers):
                if index > opened:
                    opened = index
                    for chunk in shape.opening(index):
                        yield chunk
                reason, is_last = answers[index].finish_reason, index == len(answers) - 1
                chunks = [*shape.piece(index, piece)] if piece else []
                if reason is not None:
                    chunks += shape.finish(index, reason, tally.speculation() if is_last else None)
                if reason is not None and is_last:
                    # all is decoded: a client that leaves now has cancelled nothing
                    tally.close(shape.outcome(index, reason))
                for chunk in chunks:
                    yield chunk
        except MedusaError as error:
            tally.fail(error)
            raise
        if include_usage:
            yield shape.usage(tally.usage())


def _watched(one: Wanted, tally: Tally) -> PredictionCount | None:
    """What counts the prediction of an answer, when there is one, for the request's usage."""
    if not one.generate.prediction:
        return None
    count = PredictionCount(one.generate.prediction)
    tally.watch(count)
    return count


def _joined(pieces: Sequence[Piece]) -> Piece:
    is_scored = any(piece.tokens is not None for piece in pieces)
    tokens = tuple(token for piece in pieces for token in piece.tokens or ()) if is_scored else None
    return Piece("".join(piece.text for piece in pieces), tokens)


def _likeliest(answers: Sequence[Answer], wanted: Sequence[Wanted], kept: int) -> list[int]:
    """Indices of the answers to send: of each prompt's the `kept` likeliest, best first, or all as they come."""
    by_prompt: dict[int, list[int]] = {}
    for index, one in enumerate(wanted):
        by_prompt.setdefault(one.first, []).append(index)
    chosen: list[int] = []
    for indices in by_prompt.values():
        if kept < len(indices):
            indices.sort(key=lambda index: answers[index].mean_logprob, reverse=True)
        chosen += indices[:kept]
    return chosen


async def _next(job: Job) -> tuple[int, TokenDelta]:
    try:
        return await anext(job)
    except StopAsyncIteration:
        raise EngineError("the engine ended the answer without a reason") from None


def _reason(answer: Answer) -> FinishReason:
    assert answer.finish_reason is not None, "a collected answer has ended"
    return answer.finish_reason
