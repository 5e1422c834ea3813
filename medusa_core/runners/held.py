"""Values of tensors that stay where they are in memory, and what is the same for all values that can be put there.

Works on dataclasses, to any depth: what is no tensor in them, and the shape of what is one, is their signature.
"""

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from torch import Tensor

__all__ = ["fill", "hold", "signature"]

Value = TypeVar("Value")


def signature(value: Any) -> Any:
    """What decides which operations run on a value, hashable; the contents of its tensors [...] do not."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if _has_fields(value):
        return type(value), tuple(signature(getattr(value, field.name)) for field in fields(value))
    return value


def hold(value: Value) -> Value:
    """A copy whose tensors [...] nobody else has."""
    if isinstance(value, Tensor):
        return cast(Value, value.clone())
    if _has_fields(value):
        changed: Any = value
        parts = {field.name: hold(getattr(value, field.name)) for field in fields(changed)}
        return cast(Value, replace(changed, **parts))
    return value


def fill(held: Any, value: Any) -> None:
    """Copy the tensors [...] of a value into those of a held one of the same signature."""
    if isinstance(held, Tensor):
        if held is not value:
            held.copy_(value)
    elif _has_fields(held):
        for field in fields(held):
            fill(getattr(held, field.name), getattr(value, field.name))


def _has_fields(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)
