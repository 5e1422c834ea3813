"""`medusa distill`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.commands.shared import LIBRARY, busy, given, need_file, one_line_errors, say

__all__ = ["distill"]


def distill(
    prompts: Annotated[
        Path,
        typer.Option(help="JSON lines with `messages`, ShareGPT's `conversations` or `text`; .gz is read as it is"),
    ],
    out: Annotated[Path, typer.Option(help="where the answers go, JSON lines; OUT.plan.json says how they were made")],
    model: Annotated[str, typer.Option(help="Hugging Face id or folder of the model that answers")] = "demo",
    heads: Annotated[
        str | None,
        typer.Option(help="draft heads, tried for batches of 4 prompts or fewer; left out: the checkpoint's own"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    chat_template: Annotated[Path | None, typer.Option(help="Jinja chat template for models without one")] = None,
    turns: Annotated[
        str | None,
        typer.Option(
            help="all, the default: answer every turn of the user; last: only the last, behind the file's answers"
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="longest answer, 512; a longer one is cut and marked as cut")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=2,
            help="0, the default, is greedy: what heads are measured on. 0.3 is what Medusa's authors used, and 0.7 to "
            "1.0 fits heads that will serve sampled answers",
        ),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="sample from the likeliest tokens that hold this probability")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="prompts answered at once, 32; more is faster until memory ends")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="same seed, same answers, whatever the batch size; 0 by default")
    ] = None,
) -> None:
    """Let the model write the answers its own heads are trained on.

    Heads guess best what their own model says, so the answers in --prompts are replaced by the model's. Every turn of a
    conversation is answered in order; a text is continued. A run that was ended, even by kill -9 or a full disk, goes
    on with the same command: nothing is lost or answered twice, and the file of prompts may have grown meanwhile.
    Prompts that leave no room for an answer in the context are skipped and counted.
    """
    console = Console(stderr=True)
    with one_line_errors(console):
        need_file(prompts, "--prompts")
        with busy(console, LIBRARY):
            from medusa_core import DistillPlan
            from medusa_core import distill as run_distill

        chosen = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "turns": turns,
            "batch_size": batch_size,
            "seed": seed,
        }
        made = run_distill(model, prompts, out, DistillPlan(**given(chosen)), device, heads, chat_template)
        by = "" if made.writer is None else f", written by the {made.writer}"
        say(console, f"{made.answers} answers in {out}, {made.written} of them new{by}")
        if made.skipped:
            say(console, f"{made.skipped} prompts skipped: they leave no room for an answer in the model's context")
        if made.shortened:
            say(console, f"{made.shortened} conversations end early: the next turn did not fit the model's context")
