"""Every exception the project raises on purpose.

MedusaError
  RequestError              the caller's doing, 4xx
    InvalidParameter        a value out of its range or of the wrong kind
    UnsupportedParameter    a known field whose effect cannot be given
    PromptTooLong           the prompt does not fit the context
    UnknownModel            a model name this server does not serve
    MissingChatTemplate     chat asked of a model that has no template
  Overloaded                try again later
    QueueFull               429
    QueueTimeout            503, the request's time ran out before its turn came
    NotReady                503, loading or draining
  RequestTimeout            504, the request's time ran out before its answer was complete
  CheckpointError           refuse to start
    ModelNotFound           no such folder or hub id
    UnsupportedModel        an architecture tree decoding cannot drive
    HeadsMismatch           heads that do not fit the base model
  ConfigurationError        an option or variable that cannot be honoured; refuse to start
  QualityLost               training would cost the model more than was allowed; nothing is written
  EngineError               ours, 500; the request is told and the server lives on
    OutOfMemory             503, no memory was left for a request; what was kept for later ones is given up
    DeviceFault             the device fails whatever it is asked; only a new process gets it back
    WorkerDied              the process that owns the device is gone

Each message names the thing, the limit and the way out; the server maps classes to statuses in one table.
"""

__all__ = [
    "CheckpointError",
    "ConfigurationError",
    "DeviceFault",
    "EngineError",
    "HeadsMismatch",
    "InvalidParameter",
    "MedusaError",
    "MissingChatTemplate",
    "ModelNotFound",
    "NotReady",
    "OutOfMemory",
    "Overloaded",
    "PromptTooLong",
    "QualityLost",
    "QueueFull",
    "QueueTimeout",
    "RequestError",
    "RequestTimeout",
    "UnknownModel",
    "UnsupportedModel",
    "UnsupportedParameter",
    "WorkerDied",
]


class MedusaError(Exception):
    """Base of every error raised on purpose."""


class RequestError(MedusaError):
    """The request cannot be honoured as it stands; `param` names the field when one is to blame."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidParameter(RequestError):
    """A value out of its range or of the wrong kind."""


class UnsupportedParameter(RequestError):
    """A known field whose effect this server cannot give, or `what` of it where the rest could be given."""

    def __init__(self, param: str, reason: str, what: str | None = None) -> None:
        super().__init__(f"{what if what is not None else repr(param)} is not supported: {reason}", param)


class PromptTooLong(RequestError):
    """The prompt leaves no room for an answer."""

    def __init__(self, prompt_tokens: int, max_tokens: int, context: int, param: str | None = None) -> None:
        # LiteLLM recognises an overflow by the first sentence, LangChain by the last.
        super().__init__(
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the messages, {max_tokens} in the completion). "
            "The prompt is too long; shorten it.",
            param,
        )


class UnknownModel(RequestError):
    """A model name this server does not serve."""

    def __init__(self, name: str, served: list[str]) -> None:
        super().__init__(f"the model {name[:100]!r} does not exist here; served: {', '.join(served)}", "model")


class MissingChatTemplate(RequestError):
    """Chat was asked of a model that does not say how a chat is written."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"the model {model!r} has no chat template; use /v1/completions, "
            "or start the server with --chat-template FILE",
            "messages",
        )


class Overloaded(MedusaError):
    """The server cannot take the request now; `retry_after_s` says when to come back."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Overloaded):
    """As many requests wait as the queue may hold."""

    def __init__(self, queue_size: int, retry_after_s: int) -> None:
        waiting = f"{queue_size} requests are waiting already" if queue_size > 0 else "one runs and none may wait"
        super().__init__(f"the queue is full, {waiting}; retry in {retry_after_s} s", retry_after_s)


class QueueTimeout(Overloaded):
    """The request's time ran out while it waited for its turn."""

    def __init__(self, timeout_s: float, retry_after_s: int) -> None:
        super().__init__(
            f"the request's turn did not come within {timeout_s:g} s; retry in {retry_after_s} s, or give it more "
            "time with timeout_s, up to the server's --request-timeout-s",
            retry_after_s,
        )


class NotReady(Overloaded):
    """The model is still loading, or the server is shutting down."""


class RequestTimeout(MedusaError):
    """The request's time ran out while it was answered; the same request would run out again."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"the answer was not complete within {timeout_s:g} s; ask for fewer tokens, or give it more time with "
            "timeout_s, up to the server's --request-timeout-s"
        )


class CheckpointError(MedusaError):
    """Weights or heads that cannot be served."""


class ModelNotFound(CheckpointError):
    """No folder and no hub id of that name."""


class UnsupportedModel(CheckpointError):
    """A model family that tree decoding cannot drive."""

    def __init__(self, model_type: str, reason: str) -> None:
        super().__init__(
            f"models of type {model_type!r} cannot be served: {reason}. "
            "Tree decoding needs full attention whose keys and values are kept for every token"
        )


class HeadsMismatch(CheckpointError):
    """Draft heads that were trained for another base model."""


class ConfigurationError(MedusaError):
    """An option or variable that cannot be honoured."""


class QualityLost(MedusaError):
    """Training made the base model worse than it may become."""

    def __init__(self, change_percent: float, limit_percent: float) -> None:
        super().__init__(
            f"held-out perplexity changed by {change_percent:+.2f} %, at most {limit_percent:+g} % are allowed, so "
            "nothing is written; lower the learning rate or the heads' weight, or raise --max-perplexity-percent and "
            "start the same command again: the trained state is kept"
        )


class EngineError(MedusaError):
    """Our fault; the request is told and the server lives on."""


class OutOfMemory(EngineError):
    """No memory was left, on the device or for it; what was kept for later requests is given up, and they go on."""


class DeviceFault(EngineError):
    """The device fails whatever it is asked; only a new process gets it back."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the device failed ({reason}); the worker is replaced, send the request again")


class WorkerDied(EngineError):
    """The process that owns the device is gone."""
