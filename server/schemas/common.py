"""What both generation endpoints share: their common fields, and how strictly each is read."""

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from medusa_core.config import AcceptanceName, SpeculationMode, SpeculationParams
from medusa_core.errors import InvalidParameter, UnsupportedParameter
from server.schemas.content import PARTS_SCHEMA, joined_text
from server.schemas.formats import FormatFields
from server.schemas.known_fields import ACCEPTED_WITHOUT_EFFECT, NOT_BUILT

__all__ = [
    "MAX_ANSWERS",
    "MAX_STOPS",
    "MAX_TOP_LOGPROBS",
    "Flag",
    "GenerationFields",
    "Prediction",
    "RequestFields",
    "SpeculationFields",
    "StreamOptions",
]

# OpenAI takes 4; evaluation harnesses send all stop strings of a task.
MAX_STOPS = 16
MAX_STOP_IDS = 1024
# OpenAI's limit for n; here also for all answers to all prompts of a request.
MAX_ANSWERS = 128
# OpenAI's limit for chats; its older endpoint takes 5.
MAX_TOP_LOGPROBS = 20
# OpenAI takes 300; a harness that bans a whole script needs more.
MAX_BIASES = 1024
MAX_NAMED = 16

INT64 = 2**63
# Beyond this a penalty bans what it touches; far beyond, logits overflow.
MAX_REPETITION_PENALTY = 100.0


TOKEN_ID = re.compile(r"[0-9]{1,9}")
HEADER_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _is_same(value: object, neutral: object) -> bool:
    """Equality that tells true from 1 and 0 from false."""
    return type(value) is type(neutral) and value == neutral


def _stops(value: object) -> object:
    """A string, a list or null as a list without empty strings."""
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(stop, str) for stop in value):
        raise ValueError("must be a string or a list of strings")
    if len(value) > MAX_STOPS:
        raise ValueError(f"holds {len(value)} strings, at most {MAX_STOPS} are taken")
    return [stop for stop in value if stop != ""]


def _top_k(value: object) -> object:
    """0 and -1 are clients' words for off; null is the model's own value."""
    return 0 if _is_same(value, -1) else value


def _null_is_empty(value: object) -> object:
    return [] if value is None else value


def _null_is_false(value: object) -> object:
    return False if value is None else value


def _refuse_broken_text(value: dict[Any, Any]) -> None:
    """A lone surrogate is legal JSON and no text; nothing behind this point could encode it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError, TypeError):
        pass  # the slow search below finds its name
    else:
        return
    for name, field in value.items():
        pending = [name, field]
        while pending:
            item = pending.pop()
            if isinstance(item, str):
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise InvalidParameter(f"{name!r} holds half of a surrogate pair, which is no text", name) from None
            elif isinstance(item, dict):
                pending.extend(item.keys())
                pending.extend(item.values())
            elif isinstance(item, list):
                pending.extend(item)


def _bias(value: object) -> object:
    """Token ids are the keys of a JSON object, so they arrive as strings; null is no bias."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and numbers")
    if len(value) > MAX_BIASES:
        raise ValueError(f"holds {len(value)} tokens, at most {MAX_BIASES} are taken")
    return {_token_id(key): bias for key, bias in value.items()}


def _token_id(key: object) -> int:
    if not isinstance(key, str) or TOKEN_ID.fullmatch(key) is None:
        raise ValueError(f"has the key {str(key)[:32]!r}, which is no token id")
    return int(key)


def _predicted(value: object) -> object:
    return joined_text(value, "prediction")


STOP_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STOPS},
        {"type": "null"},
    ]
}
STOP_IDS_SCHEMA = {
    "anyOf": [{"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": MAX_STOP_IDS}, {"type": "null"}]
}
BIAS_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {"pattern": f"^{TOKEN_ID.pattern}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_BIASES,
        },
        {"type": "null"},
    ]
}
FLAG_SCHEMA = {"anyOf": [{"type": "boolean"}, {"type": "null"}]}
TOP_K_SCHEMA = {"anyOf": [{"type": "integer", "minimum": -1, "exclusiveMaximum": INT64}, {"type": "null"}]}

Flag = Annotated[bool, BeforeValidator(_null_is_false), WithJsonSchema(FLAG_SCHEMA)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class StreamOptions(BaseModel):
    """Options of a streamed answer; what other clients put here is ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: Flag = False


class SpeculationFields(BaseModel):
    """How this request speculates; what is left out is the server's default."""

    model_config = ConfigDict(strict=True, extra="forbid")

    mode: SpeculationMode | None = None
    max_nodes: int | None = Field(None, ge=1, lt=INT64)
    acceptance: AcceptanceName | None = None
    epsilon: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    delta: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    detail: Flag = False

    def params(self) -> SpeculationParams:
        """The engine's parameters. Raises InvalidParameter for a value out of range."""
        return SpeculationParams(**self.model_dump(exclude_none=True, exclude={"detail"}))


class Prediction(BaseModel):
    """What the client expects the answer to hold: OpenAI's predicted outputs."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["content"]
    content: Annotated[str, BeforeValidator(_predicted), WithJsonSchema({"anyOf": PARTS_SCHEMA})]


class RequestFields(BaseModel):
    """What holds for every request: text that is text, known fields honoured or refused, others ignored by name.

    Numbers are strict: neither true nor "0.5" is one.
    """

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, dict):
            _refuse_broken_text(value)
        return value

    @model_validator(mode="after")
    def _known_fields_are_honoured(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            entry = NOT_BUILT.get(name)
            if entry is None or value is None or any(_is_same(value, neutral) for neutral in entry.neutral):
                continue
            raise UnsupportedParameter(name, entry.reason)
        return self

    def ignored_fields(self) -> str | None:
        """Value of the header x-ignored-fields: unknown fields by name, None without any.

        Client text never reaches a header raw: odd names and those past the first few are only counted.
        """
        unknown = [n for n in (self.model_extra or {}) if n not in NOT_BUILT and n not in ACCEPTED_WITHOUT_EFFECT]
        if not unknown:
            return None
        named = [name for name in unknown if HEADER_NAME.fullmatch(name)][:MAX_NAMED]
        uncounted = len(unknown) - len(named)
        return ", ".join([*named, f"+{uncounted}"] if uncounted else named)


class GenerationFields(RequestFields, FormatFields):
    """Fields of both endpoints."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: Probability | None = None
    top_k: Annotated[int | None, BeforeValidator(_top_k), WithJsonSchema(TOP_K_SCHEMA)] = Field(None, ge=0, lt=INT64)
    min_p: Probability | None = None
    seed: int | None = Field(None, ge=-INT64, lt=2 * INT64)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(None, ge=0.01, le=MAX_REPETITION_PENALTY, allow_inf_nan=False)
    logit_bias: Annotated[dict[int, Bias], BeforeValidator(_bias), WithJsonSchema(BIAS_SCHEMA)] = Field(
        default_factory=dict
    )
    min_tokens: int | None = Field(None, ge=0, lt=INT64)
    stop: Annotated[list[str], BeforeValidator(_stops), WithJsonSchema(STOP_SCHEMA)] = Field(default_factory=list)
    stop_token_ids: Annotated[list[int], BeforeValidator(_null_is_empty), WithJsonSchema(STOP_IDS_SCHEMA)] = Field(
        default_factory=list, max_length=MAX_STOP_IDS, fail_fast=True
    )
    ignore_eos: Flag = False
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    stream: Flag = False
    stream_options: StreamOptions | None = None
    speculation: SpeculationFields | None = None
    timeout_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    prediction: Prediction | None = None

    @property
    def answers_wanted(self) -> int:
        """Answers to each prompt."""
        return self.n if self.n is not None else 1

    @property
    def wants_detail(self) -> bool:
        """Whether each step is to be told of."""
        return self.speculation is not None and self.speculation.detail

    @model_validator(mode="after")
    def _stream_options_have_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidParameter("stream_options needs stream: true", "stream_options")
        return self
