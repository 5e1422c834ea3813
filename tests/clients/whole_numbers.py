"""A hook of schemathesis: JSON Schema takes 3.0 for an integer, this server wants to see 3."""

from typing import Any

import schemathesis


def written_as_integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: written_as_integers(field) for name, field in value.items()}
    if isinstance(value, list):
        return [written_as_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    return written_as_integers(body)
