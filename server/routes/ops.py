"""GET /health, /ready and /metrics, for probes and scrapers."""

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from typing_extensions import TypedDict

from server.metrics import CONTENT_TYPE_LATEST, Metrics
from server.openapi import OPERATIONS, error_responses
from server.worker.client import WorkerClient

__all__ = ["Health", "Readiness", "ops_router"]


class Health(TypedDict):
    """State of the server; `progress` is the share of the model that is loaded."""

    status: Literal["ok"]
    state: Literal["loading", "ready", "restarting", "failed", "stopping"]
    reason: str
    progress: float


class Readiness(TypedDict):
    """Sent only when requests can be answered."""

    status: Literal["ready"]


def ops_router(worker: WorkerClient, metrics: Metrics) -> APIRouter:
    """Liveness, readiness and metrics; none of them needs a key."""
    router = APIRouter(tags=[OPERATIONS])

    # some load balancers and monitors ask for the headers alone
    @router.head("/health", include_in_schema=False)
    @router.get("/health", responses=error_responses())
    async def health() -> Health:
        """200 whenever the server lives; a restarting worker is no reason to kill it."""
        state = worker.state
        return {"status": "ok", "state": state.phase, "reason": state.detail, "progress": state.share}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", responses=error_responses(503))
    async def ready() -> Readiness:
        """200 once requests can be answered, 503 before."""
        worker.ready_info()
        return {"status": "ready"}

    # a plain route: a mounted metrics app would redirect to /metrics/
    @router.get("/metrics", response_class=PlainTextResponse, responses=error_responses())
    async def prometheus() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(metrics.expose(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
