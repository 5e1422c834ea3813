"""What was found, for people and for programs."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.through_http.figures import Found, StreamFigures
from medusa_core.evaluation.machine import machine
from medusa_core.evaluation.spread import rounded

__all__ = ["document_of", "print_table", "write_document"]

# Column, width, decimals, and what stands in it.
COLUMNS = (
    ("tok/s", 8, 0, lambda one: one.tokens_per_second.median),
    ("[p10,", 8, 0, lambda one: one.tokens_per_second.p10),
    ("p90]", 7, 0, lambda one: one.tokens_per_second.p90),
    ("end to end", 12, 0, lambda one: one.end_to_end.median),
    ("first ms", 10, 1, lambda one: one.first_ms.median),
    ("ms/tok", 8, 2, lambda one: one.per_token_ms.median),
    ("tok/step", 10, 2, lambda one: one.tokens_per_step),
    ("step ms", 9, 2, lambda one: one.step_ms),
    ("+http ms", 10, 2, lambda one: one.http_ms),
    ("overhead", 10, 2, lambda one: one.overhead),
    ("x plain", 9, 2, lambda one: one.over_plain),
    ("x generate", 12, 2, lambda one: one.over_generate),
    ("identity", 10, 3, lambda one: one.identity),
    ("of limit", 10, 2, lambda one: one.share_of_limit),
    ("differ", 8, 0, lambda one: one.differing),
)


def print_table(title: str, figures: Sequence[StreamFigures]) -> None:
    """The peers, one a line."""
    print(f"\n{title}: {figures[0].prompts} prompts")
    print(f"{'peer':26}" + "".join(f"{name:>{width}}" for name, width, _, _ in COLUMNS))
    for one in figures:
        cells = (cell(value(one), width, decimals) for _, width, decimals, value in COLUMNS)
        print(f"{one.peer:26}" + "".join(cells))


def cell(value: float | None, width: int, decimals: int) -> str:
    """A number in its column, or a dash."""
    return f"{value:>{width}.{decimals}f}" if value is not None else f"{'-':>{width}}"


def document_of(benchmark: str, found: Sequence[Found], facts: Mapping[str, Any]) -> dict[str, Any]:
    """All of it as JSON holds it."""
    return {"benchmark": benchmark, **facts, "machine": machine(), "sets": [rounded(asdict(one)) for one in found]}


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """The document in a file, which is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
