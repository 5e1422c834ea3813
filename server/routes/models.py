"""GET /v1/models and /v1/models/{id}."""

from fastapi import APIRouter

from server.answering import Answering
from server.openapi import MODELS, error_responses
from server.schemas.models import Model, ModelList

__all__ = ["models_router"]


def models_router(answering: Answering) -> APIRouter:
    """What is served; answers while the model still loads, too."""
    router = APIRouter(tags=[MODELS])

    def served(name: str) -> Model:
        info = answering.worker.info
        return {
            "id": name,
            "object": "model",
            "created": answering.created,
            "owned_by": "medusa",
            "max_model_len": info.max_context if info is not None else None,
            "quantization": info.quantization if info is not None else None,
            "adapter": info.adapter is not None if info is not None else None,
        }

    @router.get("/v1/models", responses=error_responses())
    async def models() -> ModelList:
        """The served model, once for each of its names."""
        return {"object": "list", "data": [served(name) for name in answering.names.names]}

    # :path, since Hugging Face ids hold a slash
    @router.get("/v1/models/{name:path}", responses=error_responses(404))
    async def model(name: str) -> Model:
        """One served model, 404 for any other."""
        answering.names.check(name)
        # what a client makes up is no name of the model
        return served(name if name in answering.names.names else answering.names.shown)

    return router
