"""`medusa bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
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
    sizes,
)
from server.commands.shared import LIBRARY, busy, given, need_file, one_line_errors, say, watched

__all__ = ["bench"]


def bench(
    model: Model = "demo",
    heads: Heads = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines with `messages` or `text`; left out with demo: its held-out prompts"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for bench.json and pictures")] = None,
    nodes: Annotated[str | None, typer.Option(help="sizes of trees, as 8,16,32; left out: by the device")] = None,
    static: Annotated[bool, typer.Option(help="static trees too, where the heads are calibrated")] = True,
    generate: Annotated[
        bool, typer.Option("--generate", help="transformers.generate too, on a second copy of the model")
    ] = False,
    limit: Limit = None,
    max_tokens: Tokens = None,
    timed: Annotated[int | None, typer.Option(min=1, help="prompts of each kind that are timed; all count")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="how often each of them is timed")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0, the default, is greedy")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="for a temperature above 0")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    quantize: Quantize = "none",
    adapter: Adapter = True,
    max_context: MaxContext = None,
    threads: Threads = None,
    chat_template: ChatTemplate = None,
) -> None:
    """Compare decode speed: plain, static trees, dynamic trees, and transformers.generate if asked for.

    All answer the same prompts from the same weights. They take turns prompt by prompt, so that whatever else the
    machine does falls on all alike; medians are shown, with the 10th and 90th percentile in bench.json.
    """
    console = Console(stderr=True)
    with one_line_errors(console):
        compared = sizes(nodes, "--nodes")
        if prompts is not None:
            need_file(prompts, "--prompts")
        with busy(console, LIBRARY):
            from medusa_core import BenchPlan, EngineConfig, default_prompts
            from medusa_core import bench as run_bench

        prompts = prompts if prompts is not None else default_prompts(model, "--prompts")
        chosen = {
            "nodes": compared,
            "with_static": static,
            "with_generate": generate,
            "max_tokens": max_tokens,
            "limit": limit,
            "timed_prompts": timed,
            "repeats": repeats,
            "temperature": temperature,
            "seed": seed,
        }
        plan = BenchPlan(**given(chosen))
        config = EngineConfig(
            model=model,
            heads=heads,
            device=device,
            dtype=dtype,
            quantize=quantize,
            adapter=adapter,
            max_context=max_context,
            num_threads=threads,
        )
        with watched(console) as watch:
            report = run_bench(config, prompts, plan, chat_template, out, watch)
        shown = Console()
        shown.print(_table(report))
        if report.skipped > 0:
            say(shown, f"{report.skipped} prompts left no room for an answer and were skipped")
        if not any(result.kind == "static" for result in report.peers) and static:
            say(shown, "No static trees: the heads are not calibrated, or there are none (medusa calibrate)")
        if out is not None:
            say(shown, f"bench.json and pictures in {out}")


def _table(report: Any) -> Table:
    """One line for each peer."""
    counted = ", ".join(f"{count} {kind}" for kind, count in report.prompts.items())
    table = Table(
        title=escape(f"{report.model}, {report.dtype}, {report.machine['device']}; prompts: {counted}"),
        caption="tokens per step: bonus included, accepted: drafted tokens of a step, without it; overhead: by the "
        "plain step; identity: tokens per step by overhead by speed, 1 where all time is accounted for; differing: "
        f"answers that are not {report.reference}'s",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,  # so that it fits into 60 columns
        padding=0,
    )
    has_generate = any(result.over_generate is not None for result in report.peers)
    columns = ("tokens per second", "tokens per step", "accepted", "ms per step", "overhead", "by plain")
    best = max(report.peers, key=lambda result: result.tokens_per_second.median)
    rows = [_figures(result, has_generate) for result in report.peers]
    table.add_column("", no_wrap=True)
    for index, name in enumerate((*columns, *(["by generate"] if has_generate else []), "identity", "differing")):
        # words may be broken where the terminal is narrow, numbers may not
        widest = max(len(row[index]) for row in rows)
        table.add_column(name, justify="right", overflow="fold", min_width=widest)
    for result, row in zip(report.peers, rows, strict=True):
        table.add_row(result.peer, *row, style="bold green" if result is best else None)
    return table


def _figures(result: Any, has_generate: bool) -> list[str]:
    """A peer's numbers in the order of the columns."""
    figures = (
        result.tokens_per_step,
        result.acceptance_length,
        result.step_ms,
        result.overhead,
        result.over_plain,
        *([result.over_generate] if has_generate else []),
        result.identity,
    )
    shown = ["-" if value is None else f"{value:.2f}" for value in figures]
    return [f"{result.tokens_per_second.median:.1f}", *shown, str(result.differing)]
