"""GET /v1/models: the list and one model."""

from typing import Literal

from typing_extensions import TypedDict

__all__ = ["Model", "ModelList"]


class Model(TypedDict):
    """One served model; what only loading shows is null until then.

    quantization: how its weights are held in few bits, `none` when they are not.
    adapter:      whether an adapter beside the heads is merged into it.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    quantization: str | None
    adapter: bool | None


class ModelList(TypedDict):
    """Every served model."""

    object: Literal["list"]
    data: list[Model]
