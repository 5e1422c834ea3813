"""`medusa inspect`."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.commands.shared import busy, one_line_errors, without_codes

__all__ = ["inspect"]

LM_HEADS = {
    "own": "one for each head",
    "one": "one of their own for all heads",
    "shared": "the base model's",
    "low-rank": "the base model's, corrected by rank {rank}",
}


def inspect(
    source: Annotated[str, typer.Argument(help="heads: folder, file, hub id (owner/name@revision) or demo")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
) -> None:
    """Say what draft heads a folder holds: layout, shape, size, what its config claims falsely, how good they are."""
    notes = Console(stderr=True)
    with one_line_errors(notes), busy(notes, "reading"):
        from medusa_core import inspect_heads

        report = asdict(inspect_heads(source))
    console = Console()
    if as_json:
        console.print(json.dumps(report, indent=2), markup=False, highlight=False, soft_wrap=True)
        return
    console.print(_facts(report))
    if report["accuracies"] is not None:
        console.print(_accuracies(report["accuracies"]))


def _facts(report: dict[str, Any]) -> Table:
    vocabulary = "the base model's"
    if report["vocab_size"] is not None:
        vocabulary = f"{report['vocab_size']:,}" + (" tokens of the base model's" if report["truncated"] else "")
    rows = {
        "file": report["path"],
        "layout": f"{report['layout']} ({report['title']})",
        "base model": report["base_model"] if report["base_model"] is not None else "not named",
        "heads": str(report["num_heads"]),
        "blocks per head": str(report["num_layers"]) + ("" if report["has_biases"] else ", some without a bias"),
        "LM head": LM_HEADS[report["lm_head"]].format(rank=report["rank"]),
        "hidden size": f"{report['hidden_size']:,}",
        "vocabulary": vocabulary,
        "dtype": report["dtype"] + (", stored in FP8" if report["is_quantized"] else ""),
        "size": _size(report["bytes"]),
        "config": "\n".join(f"falsely claims {claim}" for claim in report["false_claims"]) or "as the file",
    }
    if report["has_adapter"]:
        rows["adapter"] = "beside the heads, merged into the base when they are served"
    if report["accuracies"] is None:
        rows["calibration"] = "none; medusa calibrate makes one"
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(without_codes(value)))
    return table


def _accuracies(heads: list[dict[str, Any]]) -> Table:
    table = Table(title="right by its calibration", title_justify="left")
    for name in ("head", "predicts", "top 1", "top 5", "samples"):
        table.add_column(name, justify="right")
    for number, head in enumerate(heads, start=1):
        shares = f"{head['top1']:.1%}", f"{head['top5']:.1%}"
        table.add_row(str(number), f"t + {number + 1}", *shares, f"{head['samples']:,}")
    return table


def _size(amount: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if amount >= scale:
            return f"{amount / scale:.2f} {unit}"
    return f"{amount} bytes"
