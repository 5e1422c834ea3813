"""What a client gets instead of an answer."""

from typing_extensions import TypedDict

__all__ = ["ErrorBody", "ErrorDetail"]


class ErrorDetail(TypedDict):
    """What went wrong.

    type:  the kind, such as invalid_request_error.
    param: the field to blame, when there is one.
    code:  what a program can tell apart, such as model_not_found.
    """

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """OpenAI's shape of every error, of whatever status."""

    error: ErrorDetail
