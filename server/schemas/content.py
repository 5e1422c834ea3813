"""Text as clients send it: a string, or a list of parts that are joined as they are."""

from typing import Any

from medusa_core.errors import UnsupportedParameter

__all__ = ["PARTS_SCHEMA", "joined_text"]

PARTS_SCHEMA: list[dict[str, Any]] = [
    {"type": "string"},
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
        },
    },
]


def joined_text(value: object, param: str) -> object:
    """The text of a string or of text parts; null stays null.

    Raises UnsupportedParameter, naming `param`, for parts of another type, and ValueError for what is neither.
    """
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts")
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal"):
            if isinstance(kind, str):
                raise UnsupportedParameter(param, "the model reads text only", f"a part of type {kind[:64]!r}")
            raise ValueError("has a part that is no object with a type")
        text = part.get(kind)
        if not isinstance(text, str):
            raise ValueError(f"has a {kind} part without a string {kind!r}")
        texts.append(text)
    return "".join(texts)
