"""`medusa calibrate`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from server.commands.options import (
    Adapter,
    ChatTemplate,
    Device,
    DType,
    Heads,
    MaxContext,
    Model,
    Quantize,
    Threads,
    Tokens,
    sizes,
)
from server.commands.shared import LIBRARY, busy, given, need_file, one_line_errors, say, watched

__all__ = ["calibrate"]


def calibrate(
    model: Model = "demo",
    heads: Heads = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines as for `medusa train`; the heads are judged on its answers, and on the model's own where "
            "it has none; left out with demo: its held-out prompts"
        ),
    ] = None,
    own_answers: Annotated[
        bool, typer.Option("--own-answers", help="judge the heads on what the model itself answers; takes longer")
    ] = False,
    nodes: Annotated[str | None, typer.Option(help="sizes of trees to measure, as 1,8,16,32; 1 must be there")] = None,
    records: Annotated[int | None, typer.Option(min=1, help="lines of the data that are read")] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="prompts answered to count tokens per step")] = None,
    max_tokens: Tokens = None,
    context: Annotated[int | None, typer.Option(min=1, help="tokens in the cache while steps are timed")] = None,
    pictures: Annotated[Path | None, typer.Option(help="folder for pictures of what was found")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    quantize: Quantize = "none",
    adapter: Adapter = True,
    max_context: MaxContext = None,
    threads: Threads = None,
    chat_template: ChatTemplate = None,
) -> None:
    """Measure draft heads on your data and this machine, so that `medusa serve` takes the fastest tree.

    How often each guess of each head is right, the temperature that makes it honest, the tokens per step and the time
    of a step by the size of the tree, and the best static trees go into calibration.json beside the heads. Times are
    used on the device, dtype and threads they were measured with only; run it once for each machine.
    """
    out, console = Console(), Console(stderr=True)
    with one_line_errors(console):
        measured = sizes(nodes, "--nodes")
        if data is not None:
            need_file(data, "--data")
        with busy(console, LIBRARY):
            from medusa_core import CalibratePlan, EngineConfig, default_prompts
            from medusa_core import calibrate as run_calibrate

        # held-out prompts are beginnings, whose text is no answer
        is_own = own_answers or data is None
        data = data if data is not None else default_prompts(model, "--data")
        chosen = {
            "nodes": measured,
            "own_answers": is_own,
            "records": records,
            "prompts": prompts,
            "max_tokens": max_tokens,
            "context": context,
        }
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
            found = run_calibrate(config, data, CalibratePlan(**given(chosen)), chat_template, pictures, watch)
        out.print(_accuracy_table(found.calibration))
        out.print(_size_table(found))
        place = found.curve.place
        verdict = (
            f"Fastest on {place.device} in {place.dtype}: N = {found.nodes}, {found.speed_up(found.nodes):.2f} times "
            "plain decoding"
            if found.nodes > 1
            else f"On {place.device} in {place.dtype} no tree pays: plain decoding is fastest"
        )
        say(out, f"{verdict}. `medusa serve` chooses the size of its trees by {found.path}")
        if pictures is not None:
            say(out, f"Pictures in {pictures}")


def _accuracy_table(calibration: Any) -> Table:
    """How often the heads are right."""
    table = Table(title="How often the true token is among a head's guesses", title_justify="left")
    for name in ("head", "first", "first 5", "first 10", "positions", "temperature"):
        table.add_column(name, justify="right", overflow="fold")
    for head, shares in enumerate(calibration.accuracies):
        within = [f"{100 * sum(shares[:ranks]):.1f} %" for ranks in (1, 5, 10)]
        temperature = f"{calibration.temperatures[head]:.2f}"
        table.add_row(str(head + 1), *within, f"{calibration.samples[head]:,}", temperature)
    return table


def _size_table(found: Any) -> Table:
    """What trees of each size bring and cost here."""
    seconds, calibration = found.curve.seconds, found.calibration
    table = Table(
        title="Trees by their size; tokens per step include the bonus token",
        caption=f"step behind {found.curve.context} tokens; overhead and speed by the plain step's",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("nodes N", "tokens per step", "static tree, expected", "ms per step", "overhead", "speed"):
        table.add_column(name, justify="right", overflow="fold")
    for nodes in sorted(seconds):
        table.add_row(
            str(nodes),
            f"{calibration.tokens_at(nodes):.2f}",
            f"{calibration.expected_tokens_per_step(nodes):.2f}",
            f"{1e3 * seconds[nodes]:.2f}",
            f"{seconds[nodes] / seconds[1]:.2f}",
            f"{found.speed_up(nodes):.2f}x",
            style="bold green" if nodes == found.nodes else None,
        )
    return table
