"""GET /health, /ready and /metrics, for probes and scrapers."""

from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from server.metrics import CONTENT_TYPE_LATEST, Metrics
from server.worker.client import WorkerClient

__all__ = ["Health", "ops_router"]


class Health(TypedDict):
    """State of the server; `progress` is the share of the model that is loaded."""

    status: str
    state: str
    reason: str
    progress: float


def ops_router(worker: WorkerClient, metrics: Metrics) -> APIRouter:
    """Liveness, readiness and metrics; none of them needs a key."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Health:
        """200 whenever the server lives; a restarting worker is no reason to kill it."""
        state = worker.state
        return {"status": "ok", "state": state.phase, "reason": state.detail, "progress": state.share}

    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """200 once requests can be answered, 503 before."""
        worker.ready_info()
        return {"status": "ready"}

    # a plain route: a mounted metrics app would redirect to /metrics/
    @router.get("/metrics")
    async def prometheus() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(metrics.expose(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
