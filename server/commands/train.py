"""`medusa train`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medusa_core.errors import ConfigurationError
from server.commands.shared import given, need_file, one_line_errors, say

__all__ = ["train"]


def train(
    data: Annotated[Path, typer.Option(help="JSON lines, best the model's own answers (medusa distill)")],
    out: Annotated[Path, typer.Option(help="folder of the heads; a run that was ended takes up where it was")],
    model: Annotated[str, typer.Option(help="Hugging Face id or folder of the base model")] = "demo",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    recipe: Annotated[str, typer.Option(help="medusa1: the base model stays as it is")] = "medusa1",
    heads: Annotated[int | None, typer.Option(min=1, help="number of heads")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the data")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="of AdamW, after the warm-up")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="longer examples are cut")] = None,
    seed: Annotated[int | None, typer.Option(help="order of the data and start of the heads")] = None,
) -> None:
    """Train draft heads for a model."""
    console = Console(stderr=True)
    with one_line_errors(console):
        if recipe != "medusa1":
            raise ConfigurationError(f"--recipe {recipe} is not built yet; only medusa1 can be chosen")
        need_file(data, "--data")
        from medusa_core import TrainPlan
        from medusa_core import train as run_train

        chosen = {
            "num_heads": heads,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "max_length": max_length,
            "seed": seed,
        }
        run_train(model, data, out, TrainPlan(**given(chosen)), device)
        serve_them = f"medusa serve --model {shlex.quote(model)} --heads {shlex.quote(str(out))}"
        say(console, f"heads in {out}; serve them with: {serve_them}")
