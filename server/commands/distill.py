"""`medusa distill`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.commands.shared import given, need_file, one_line_errors, say

__all__ = ["distill"]


def distill(
    prompts: Annotated[Path, typer.Option(help="JSON lines with `messages` or `text`; answers in them are ignored")],
    out: Annotated[Path, typer.Option(help="where the answers go, JSON lines; a second run takes up where one ended")],
    model: Annotated[str, typer.Option(help="Hugging Face id or folder of the model that answers")] = "demo",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="prompts answered at once")] = None,
    seed: Annotated[int | None, typer.Option(help="same seed, same answers")] = None,
) -> None:
    """Let the model write the answers its own heads are trained on."""
    console = Console(stderr=True)
    with one_line_errors(console):
        need_file(prompts, "--prompts")
        from medusa_core import DistillPlan
        from medusa_core import distill as run_distill

        chosen = {"max_tokens": max_tokens, "temperature": temperature, "batch_size": batch_size, "seed": seed}
        answers = run_distill(model, prompts, out, DistillPlan(**given(chosen)), device)
        say(console, f"{answers} answers in {out}")
