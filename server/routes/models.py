"""GET /v1/models and /v1/models/{id}."""

from fastapi import APIRouter

from server.answering import Answering
from server.openapi import MODELS, error_responses
from server.schemas.models import Model, ModelList

__all__ = ["models_router"]


def models_router(answering: Answering) -> APIRouter:
    """What is served; answers while the model still loads, too."""
    router = APIRouter(tags=[MODELS])

    def served() -> Model:
        info = answering.worker.info
        return {
            "id": answering.model_name,
            "object": "model",
            "created": answering.created,
            "owned_by": "medusa",
            "max_model_len": info.max_context if info is not None else None,
            "quantization": info.quantization if info is not None else None,
            "adapter": info.adapter is not None if info is not None else None,
        }

    @router.get("/v1/models", responses=error_responses())
    async def models() -> ModelList:
        """Every served model."""
        return {"object": "list", "data": [served()]}

    # :path, since Hugging Face ids hold a slash
    @router.get("/v1/models/{name:path}", responses=error_responses(404))
    async def model(name: str) -> Model:
        """One served model, 404 for any other."""
        answering.check_model(name)
        return served()

    return router
