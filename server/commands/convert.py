"""`medusa convert`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.commands.shared import busy, one_line_errors, say

__all__ = ["convert"]

LAYOUTS = "medusa, medusa-v1, medusa-v2, full, tgi, vllm, tensorrt-llm, modelopt"


def convert(
    source: Annotated[str, typer.Argument(help="heads: folder, file, hub id (owner/name@revision) or demo")],
    target: Annotated[Path, typer.Argument(help="folder to make; must not exist, or be empty")],
    layout: Annotated[str, typer.Option(help=f"one of {LAYOUTS}; docs/heads.md says who reads which")],
    model: Annotated[
        str | None,
        typer.Option(help="base model: recorded by name; read where the layout holds its LM head, or all of it (full)"),
    ] = None,
) -> None:
    """Write draft heads in another layout, so that other engines can read them.

    Weights keep their values and dtype. A calibration beside the heads goes along and into the model card.
    """
    console = Console(stderr=True)
    with one_line_errors(console):
        with busy(console, "converting"):
            from medusa_core import convert_heads

            convert_heads(source, target, layout, model)
        say(console, f"heads in {target}, layout {layout}")
