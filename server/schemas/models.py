"""GET /v1/models: the list and one model."""

from typing import Literal

from typing_extensions import TypedDict

__all__ = ["Model", "ModelList"]


class Model(TypedDict):
    """One served model; max_model_len is null until the model is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None


class ModelList(TypedDict):
    """Every served model."""

    object: Literal["list"]
    data: list[Model]
