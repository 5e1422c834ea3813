"""Replicas of the server behind one address, on Ray Serve: each owns one GPU, one worker and one answer at a time.

A request passes Ray's HTTP proxy, then Front, which reads its body and says whose conversation it is, then the Replica
that holds that conversation's prefix. A Replica is the application of `medusa serve` without a socket.

    python deploy/ray/medusa_ray.py --max-replicas 4

Settings are those of `medusa serve`, from MEDUSA_ variables; see docs/operations.md, "More than one GPU".
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated

import msgspec
import ray
import typer
from pydantic import BaseModel, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RunningReplica
from rich.console import Console
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from medusa_core.errors import (
    ConfigurationError,
    EngineError,
    MedusaError,
    NotReady,
    QueueFull,
    QueueTimeout,
    WorkerDied,
)
from server.assembly import assemble
from server.body_guard import BodyGuard
from server.commands.shared import one_line_errors
from server.conversations import conversation_key
from server.errors import error_body, error_response
from server.logs import configure_logs, rendering_of
from server.merged_metrics import merged_metrics
from server.relayed import ANSWERED_BY, answer_with_room, disconnected, plain_scope, relayed_answer, whole_response
from server.serving import open_port
from server.settings import Settings, load_settings
from server.worker.client import ENGINE_FACTORY

APPLICATION = "medusa"
# Places at a replica for those that do not generate: probes, the list of models, refusals.
SPARE_PLACES = 8
# A conversation waits behind so many more requests than elsewhere before it leaves the replica that holds its prefix.
PATIENCE = 1
# A slower answer to /metrics would miss its scrape.
GATHER_TIMEOUT_S = 8.0
PROBE_TIMEOUT_S = 3.0
DRAIN_INTERVAL_S = 0.1
# What waits is averaged over so long before the number of replicas follows it. Ray hears of it every ten seconds.
LOOK_BACK_S = 20.0
RETRY_AFTER_S = 5
# Ray's proxy sends it too, and the same one.
RAYS_HEADER = b"x-request-id"
# The part of a request's scope that names the replicas whose queues were full.
FULL_REPLICAS = "medusa.full_replicas"
# Requests and answers are kilobytes; Ray would set aside a third of the machine's memory.
OBJECT_STORE_BYTES = 256 * 1024 * 1024
# The server in each replica keeps a log of its own.
QUIET = {"enable_access_log": False, "log_level": "WARNING"}
# Ray reads these as it is imported. Despite its name the first decides on Linux, too, whether a cluster of one host
# listens on 127.0.0.1 alone; without it most of Ray's ports are open to the network.
LOCAL_CLUSTER = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",
}


class Scaling(BaseModel, frozen=True, extra="forbid"):
    """How many replicas there are, and when their number changes."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    fronts: int = Field(2, ge=1)
    upscale_delay_s: float = Field(30.0, ge=0)
    downscale_delay_s: float = Field(600.0, ge=0)


class PrefixRouter(ConsistentHashRouter):
    """Sends a conversation to the replica its key falls on, unless much less waits elsewhere.

    Ray's own router would let a conversation wait behind a whole queue while another replica is idle: a prefix is
    computed again in less time than another answer takes.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All replicas, the preferred first, each a rank of its own; those that refused this request come last."""
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        full = pending_request.args[0].get(FULL_REPLICAS, ()) if pending_request is not None else ()
        loads = [sum(self.replica_queue_len_cache.get(replica.replica_id) or 0 for replica in rank) for rank in ranks]
        excess = {id(rank): max(0, load - min(loads) - PATIENCE) for rank, load in zip(ranks, loads, strict=True)}
        # sorting keeps the order of the keys among those that are not too busy
        return sorted(ranks, key=lambda rank: (rank[0].replica_id.unique_id in full, excess[id(rank)]))


class Replica:
    """The application over one worker, called with requests that somebody else received."""

    async def __init__(self, settings: Settings, factory: str) -> None:
        configure_logs(rendering_of(settings.log_format), settings.log_level, "replica")
        self._running = AsyncExitStack()
        self._assembly = await asyncio.to_thread(assemble, settings, factory)
        await self._running.enter_async_context(self._assembly.app.router.lifespan_context(self._assembly.app))
        try:
            await self._assembly.worker.wait_loaded()
        except MedusaError:
            await self._running.aclose()
            raise

    async def __del__(self) -> None:
        """Ray calls and awaits this at the end, when nothing runs any more or the time for that is over."""
        await self._running.aclose()

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The application's answer, message by message; cancelling this tells it that the client has left."""
        async with contextlib.aclosing(relayed_answer(self._assembly.app, scope, body)) as messages:
            async for message in messages:
                if message["type"] == "http.response.start":
                    message["headers"] = [(name, value) for name, value in message["headers"] if name != RAYS_HEADER]
                    message[ANSWERED_BY] = serve.get_replica_context().replica_id.unique_id
                yield message

    async def whole_answer(self, scope: Scope, body: bytes) -> tuple[str, list[Message]]:
        """The replica's rank and its answer in one piece."""
        return str(serve.get_replica_context().rank.rank), [message async for message in self.answer(scope, body)]

    def check_health(self) -> None:
        """Ray replaces a replica that raises here. A worker that can come back is the replica's own affair."""
        state = self._assembly.worker.state
        if state.phase == "failed":
            raise RuntimeError(f"the worker has failed for good: {state.detail}")


@serve.ingress()
class Front:
    """Reads requests and passes them to the replica that knows their conversation; holds no model.

    replicas: where they go.
    most:     how many of them there can be.
    """

    def __init__(self, replicas: DeploymentHandle[Replica], most: int, settings: Settings) -> None:
        # any option makes the handle look for the replicas now, and not at the first request
        self._replicas = replicas.options(session_id="")
        self._most = most
        self._settings = settings
        self._is_draining = False
        self._answering = 0

    async def drain(self) -> None:
        """Refuse what comes from now on, and return when nothing runs any more."""
        self._is_draining = True
        while self._answering > 0:
            await asyncio.sleep(DRAIN_INTERVAL_S)

    def __serve_build_asgi_app__(self) -> Router:
        """What Ray calls with every request; the router answers the messages of the lifespan."""
        settings = self._settings
        guard = BodyGuard(self._handle, settings.max_body_bytes, settings.body_timeout_s, on_refused=lambda error: None)
        return Router(default=guard)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        plain, body = plain_scope(scope), (await receive())["body"]
        if scope["path"] == "/metrics":
            await (await self._gathered(plain, body))(scope, receive, send)
        elif scope["path"] in ("/health", "/ready"):
            await (await self._probed(plain, body))(scope, receive, send)
        elif self._is_draining or not self._replicas.running_replicas_populated():
            await error_response(self._not_ready())(scope, receive, send)
        else:
            self._answering += 1
            try:
                await self._pass_on(plain, body, receive, send)
            finally:
                self._answering -= 1

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Answer with what a replica answers; what ends it too early becomes an error or an event."""
        leaving = asyncio.create_task(disconnected(receive))
        is_stream, is_begun = False, False
        try:
            # the replica counts from when it hears of the request, and it may wait here for a place
            async with (
                asyncio.timeout(self._settings.request_timeout_s) as waiting,
                contextlib.aclosing(answer_with_room(partial(self._asked, scope, body, leaving), self._most)) as answer,
            ):
                async for message in answer:
                    waiting.reschedule(None)
                    if message["type"] == "http.response.start":
                        content_type = Headers(raw=message["headers"]).get("content-type", "")
                        is_begun, is_stream = True, content_type.startswith("text/event-stream")
                    await send(message)
        except (RayError, RayServeException, asyncio.CancelledError, TimeoutError) as error:
            if leaving.done():
                return
            if isinstance(error, asyncio.CancelledError) or (is_begun and not is_stream):
                raise
            told = self._explained(error)
            if is_begun:
                last = b"data: " + msgspec.json.encode(error_body(told)) + b"\n\ndata: [DONE]\n\n"
                await send({"type": "http.response.body", "body": last})
            else:
                await error_response(told)(scope, receive, send)
        finally:
            leaving.cancel()

    async def _asked(
        self, scope: Scope, body: bytes, leaving: asyncio.Task[None], full: Sequence[str]
    ) -> AsyncGenerator[Message, None]:
        """What the conversation's replica answers, or the next one that is not full; until the client leaves."""
        session = self._replicas.options(stream=True, session_id=conversation_key(Headers(scope=scope), body))
        answer = session.answer.remote({**scope, FULL_REPLICAS: full}, body)
        leaving.add_done_callback(lambda task: None if task.cancelled() else answer.cancel())
        try:
            async for message in answer:
                yield message
        except BaseException:
            answer.cancel()
            raise

    async def _probed(self, scope: Scope, body: bytes) -> Response:
        """What any replica says of itself; without one Front lives all the same, and nobody is ready."""
        if not self._is_draining and self._replicas.running_replicas_populated():
            asked = self._replicas.whole_answer.remote(scope, body)
            try:
                _, messages = await asyncio.wait_for(asked, PROBE_TIMEOUT_S)
            except (RayError, RayServeException, TimeoutError):
                asked.cancel()
            else:
                return whole_response(messages)
        if scope["path"] == "/ready":
            return error_response(self._not_ready())
        state = "stopping" if self._is_draining else "loading"
        health = {"status": "ok", "state": state, "reason": str(self._not_ready()), "progress": 0.0}
        return Response(msgspec.json.encode(health), media_type="application/json")

    async def _gathered(self, scope: Scope, body: bytes) -> Response:
        """The metrics of all replicas, each sample with its replica's rank; or the first answer that is none."""
        try:
            answers = await self._replicas.broadcast("whole_answer", scope, body).results_async(
                timeout_s=GATHER_TIMEOUT_S, return_exceptions=True
            )
        except (RayServeException, TimeoutError):
            answers = []
        told = dict(answer for answer in answers if not isinstance(answer, BaseException))
        if not told:
            return error_response(NotReady("no replica tells its metrics now", RETRY_AFTER_S))
        return merged_metrics({rank: whole_response(messages) for rank, messages in told.items()})

    def _not_ready(self) -> NotReady:
        reason = "the server is shutting down" if self._is_draining else "no replica has the model loaded now"
        return NotReady(reason, RETRY_AFTER_S)

    def _explained(self, error: Exception) -> MedusaError:
        if isinstance(error, BackPressureError):
            return QueueFull(self._settings.queue_size, RETRY_AFTER_S)
        if isinstance(error, TimeoutError):
            return QueueTimeout(self._settings.request_timeout_s, RETRY_AFTER_S)
        return WorkerDied("the replica ended while it answered; another takes its place, send the request again")


def gpus_of(settings: Settings) -> int:
    """GPUs that each replica takes: one, unless it is to compute on the CPU.

    Raises ConfigurationError for a GPU by number: each replica sees only its own.
    """
    if settings.device.startswith("cuda:"):
        raise ConfigurationError(f"--device {settings.device} names one GPU for all replicas; write cuda")
    if settings.device == "auto":
        return 1 if ray.cluster_resources().get("GPU", 0) > 0 else 0
    return 1 if settings.device == "cuda" else 0


def build(scaling: Scaling) -> serve.Application:
    """The application for serve.run.

    Raises ConfigurationError.
    """
    settings = load_settings({})
    places, most = 1 + settings.queue_size + SPARE_PLACES, max(scaling.min_replicas, scaling.max_replicas)
    replicas = serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options={"num_cpus": 0, "num_gpus": gpus_of(settings)},
        max_ongoing_requests=places,
        max_queued_requests=places,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=most,
            target_ongoing_requests=1,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            look_back_period_s=LOOK_BACK_S,
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter,
            request_router_kwargs={"num_fallback_replicas": most - 1},
        ),
        graceful_shutdown_timeout_s=settings.shutdown_timeout_s,
        max_constructor_retry_count=3,
    )
    # another router's requests may fill the replicas, so each can hold all there is room for
    room = (places + 1) * most
    front = serve.deployment(
        Front,
        name="Front",
        num_replicas=scaling.fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=room,
        max_queued_requests=room,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=settings.shutdown_timeout_s,
    )
    return front.bind(replicas.bind(settings, ENGINE_FACTORY), most, settings)


def main(
    min_replicas: Annotated[int, typer.Option(help="replicas that always run")] = 1,
    max_replicas: Annotated[int, typer.Option(help="replicas at most; one GPU each")] = 1,
    fronts: Annotated[int, typer.Option(help="processes that read requests and pass them on")] = 2,
    upscale_delay_s: Annotated[
        float, typer.Option(help="seconds of more than one request at each, then one more")
    ] = 30,
    downscale_delay_s: Annotated[float, typer.Option(help="seconds of less, then one ends")] = 600,
    address: Annotated[str, typer.Option(help="a running Ray cluster to join; local starts one")] = "local",
) -> None:
    """Serve with several replicas until a signal ends it; settings are MEDUSA_ variables, as for `medusa serve`."""
    console = Console(stderr=True)
    with one_line_errors(console):
        settings = load_settings({})
        scaling = Scaling(
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            fronts=fronts,
            upscale_delay_s=upscale_delay_s,
            downscale_delay_s=downscale_delay_s,
        )
        # Ray would only say in a log that another program has the port
        with open_port(settings.host, settings.port) as listener:
            port = listener.getsockname()[1]
        connect(address)
        asked_to_end = threading.Event()
        # until there is something to drain, a signal ends what goes on: a model may load for minutes, or for ever
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            serve.start(http_options=HTTPOptions(host=settings.host, port=port), logging_config=QUIET)
            fronts_of_all = serve.run(build(scaling), name=APPLICATION, logging_config=QUIET)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: asked_to_end.set())
            console.print(f"http://{settings.host}:{port}/v1 answers", highlight=False)
            asked_to_end.wait()
            # Ray itself would end its proxy first, and cut off what it was sending
            with contextlib.suppress(TimeoutError):
                running = fronts_of_all.broadcast("drain")
                running.results(timeout_s=settings.shutdown_timeout_s, return_exceptions=True)
        except RuntimeError as error:
            raise EngineError(f"{' '.join(str(error).split())} The lines above say why.") from error
        finally:
            serve.shutdown()
            ray.shutdown()


def connect(address: str) -> None:
    """Join a cluster or start one on this host, for which the program begins anew with the variables Ray needs."""
    if address != "local":
        ray.init(address)
        return
    if not os.environ.keys() >= LOCAL_CLUSTER.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**LOCAL_CLUSTER, **os.environ})
    ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)


if __name__ == "__main__":
    typer.run(main)
