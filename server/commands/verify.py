"""`medusa verify`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.commands.options import (
    Adapter,
    ChatTemplate,
    Device,
    DType,
    Heads,
    Limit,
    MaxContext,
    Model,
    Quantize,
    Threads,
    Tokens,
)
from server.commands.shared import FAILURE, LIBRARY, busy, given, need_file, one_line_errors, say, watched

__all__ = ["verify"]

SHOWN_DIVERGENCES = 20


def verify(
    model: Model = "demo",
    heads: Heads = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines with `messages` or `text`; left out with demo: its held-out prompts"),
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(min=0, max=2, help="may be given several times; left out: 0 and 1")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="for temperatures above 0")] = None,
    limit: Limit = None,
    max_tokens: Tokens = None,
    tree_nodes: Annotated[int | None, typer.Option(min=2, help="nodes of one verified tree")] = None,
    tree: Annotated[str, typer.Option(help="dynamic or static")] = "dynamic",
    device: Device = "auto",
    dtype: DType = "auto",
    quantize: Quantize = "none",
    adapter: Adapter = True,
    max_context: MaxContext = None,
    threads: Threads = None,
    chat_template: ChatTemplate = None,
) -> None:
    """Check that speculation changes no answer: trees against plain decoding, greedy and seeded, token by token.

    In float32 every answer must agree, and the command ends with status 1 when one does not. In other dtypes one row
    and many rows round differently, so near-ties may fall either way: the rate is told, with the gap between the two
    logits, and the status is 0.
    """
    out, console = Console(), Console(stderr=True)
    with one_line_errors(console):
        if prompts is not None:
            need_file(prompts, "--prompts")
        with busy(console, LIBRARY):
            from medusa_core import EngineConfig, VerifyPlan, default_prompts
            from medusa_core import verify as run_verify

        prompts = prompts if prompts is not None else default_prompts(model, "--prompts")
        temperatures = tuple(temperature) if temperature else None
        plan = VerifyPlan(
            **given({"temperatures": temperatures, "seed": seed, "max_tokens": max_tokens, "limit": limit})
        )
        config = EngineConfig(
            model=model,
            heads=heads,
            device=device,
            dtype=dtype,
            quantize=quantize,
            adapter=adapter,
            max_context=max_context,
            tree_nodes=tree_nodes,
            tree=tree,
            num_threads=threads,
        )
        with watched(console) as watch:
            report = run_verify(config, prompts, plan, chat_template, watch)
        differing = len(report.divergences)
        if differing > 0:
            out.print(_table(report))
        say(
            out,
            f"{report.answers - differing} of {report.answers} answers ({report.tokens:,} tokens, {report.dtype}) are "
            f"those of plain decoding, token for token; trees of {report.nodes} nodes, {report.tokens_per_step:.2f} "
            f"tokens per step (bonus included), {report.speed_up:.2f} times its speed",
        )
        if report.skipped > 0:
            say(out, f"{report.skipped} prompts left no room for an answer and were skipped")
        if differing > 0 and not report.must_agree:
            say(
                out,
                f"In {report.dtype} near-ties may fall either way; {differing / report.answers:.1%} of the answers did",
            )
        if report.has_failed:
            say(console, f"error: in {report.dtype} every answer must agree; please report this with the table above")
            raise SystemExit(FAILURE)


def _table(report: Any) -> Table:
    """Where answers first depart from plain decoding's."""
    hidden = len(report.divergences) - SHOWN_DIVERGENCES
    more = f"; {hidden} more are not shown" if hidden > 0 else ""
    table = Table(
        title="First token of each answer that differs",
        caption=f"margin: the logit gap by temperature, with the noise of the draw; near 0 is a near-tie{more}",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("line", "temperature", "token", "plain", "tree", "logit gap", "margin"):
        table.add_column(name, justify="left" if name in ("plain", "tree") else "right")
    for found in report.divergences[:SHOWN_DIVERGENCES]:
        table.add_row(
            str(found.line),
            f"{found.temperature:g}",
            str(found.index),
            *(
                escape(text if token is None else f"{token} {text!r}")
                for token, text in ((found.plain, found.plain_text), (found.tree, found.tree_text))
            ),
            *("-" if value is None else f"{value:.4f}" for value in (found.logit_gap, found.margin)),
        )
    return table
