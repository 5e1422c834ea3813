"""`medusa train`."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from medusa_core.errors import ConfigurationError
from server.commands.options import ChatTemplate, Device, Model, Quantize
from server.commands.shared import LIBRARY, busy, given, need_file, one_line_errors, say, watched

__all__ = ["train"]

DEFAULT_RANK = 64
JOINT = "With --recipe medusa2"
# Heads that were changed less often than this have hardly begun to learn.
FEW_STEPS = 100
# What the fields of the joint plan are called here.
JOINT_OPTIONS = {
    "epochs": "--joint-epochs",
    "learning_rate": "--joint-rate",
    "heads_weight": "--heads-weight",
    "heads_ramp": "--ramp",
    "two_stages": "--one-stage",
    "self_distilled": "--on-data",
    "adapter_rank": "--adapter-rank",
    "max_perplexity_percent": "--max-perplexity-percent",
    "merge": "--merge",
}


def train(
    data: Annotated[Path, typer.Option(help="JSON lines, best the model's own answers (medusa distill)")],
    out: Annotated[Path, typer.Option(help="folder of the heads; a run that was ended takes up where it was")],
    model: Model = "demo",
    recipe: Annotated[
        str, typer.Option(help="medusa1: the base stays as it is; medusa2: an adapter on it is trained with the heads")
    ] = "medusa1",
    heads: Annotated[int | None, typer.Option(min=1, help="number of heads, 4 by default")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="residual blocks of each head, 1 by default")] = None,
    lm_heads: Annotated[
        str,
        typer.Option(
            help="shared: the base's LM head serves all heads; own: each trains a copy, which guesses better and "
            "costs bandwidth; low-rank: each adds a correction of --rank to the shared one"
        ),
    ] = "shared",
    rank: Annotated[int | None, typer.Option(min=1, help="of low-rank LM heads, 64 by default")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the data, 2 by default")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="of the heads, 2e-3 by default")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="tokens of a packed row, 2048 by default")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="rows that go through at once, 2 by default")] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="such passes for one step, 2 by default")] = None,
    held_out: Annotated[
        float | None, typer.Option(min=0, max=100, help="percent of the examples that only measure, 2 by default")
    ] = None,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="measure the heads every so many steps")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="end after so many measurements without progress, with the best heads")
    ] = None,
    joint_epochs: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=JOINT, help="passes of the second stage, 1")
    ] = None,
    joint_rate: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="<float>", rich_help_panel=JOINT, help="learning rate, 5e-4; the heads learn 4 times as fast"
        ),
    ] = None,
    heads_weight: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="<float>", rich_help_panel=JOINT, help="of the heads' loss against the base's own, 0.2"
        ),
    ] = None,
    ramp: Annotated[
        bool, typer.Option("--ramp", rich_help_panel=JOINT, help="let that weight rise from 0, along a sine")
    ] = False,
    one_stage: Annotated[
        bool, typer.Option("--one-stage", rich_help_panel=JOINT, help="train base and heads together from the start")
    ] = False,
    on_data: Annotated[
        bool,
        typer.Option("--on-data", rich_help_panel=JOINT, help="hold the base to the data, not to what it said before"),
    ] = False,
    adapter_rank: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=JOINT, help="of the LoRA adapter, 32 by default")
    ] = None,
    max_perplexity_percent: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=JOINT,
            help="by how much held-out perplexity may rise before nothing is written, 1 by default",
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", rich_help_panel=JOINT, help="write a whole model, not heads with an adapter beside them"
        ),
    ] = False,
    measure: Annotated[
        bool, typer.Option(help="when the heads are there, measure tokens per step and step times on this machine")
    ] = True,
    compile: Annotated[bool, typer.Option("--compile", help="compile the loss; needs a compiler at hand")] = False,
    device: Device = "auto",
    quantize: Quantize = "none",
    spread: Annotated[bool, typer.Option("--spread", help="lay a base too large for one GPU over all of them")] = False,
    chat_template: ChatTemplate = None,
    seed: Annotated[int | None, typer.Option(min=0, help="order of the data and start of the adapter")] = None,
) -> None:
    """Train draft heads for a model: from answers to heads that `medusa serve` and other engines can load.

    OUT holds the heads, their calibration, report.json and pictures. A run that was ended, even by kill -9, goes on
    with the same command, to the bit. On several GPUs: accelerate launch --multi_gpu .venv/bin/medusa train ...; each
    step is shared out, and the curve stays that of one GPU.

    For example: medusa distill --model M --prompts questions.jsonl --out answers.jsonl && medusa train --model M
    --data answers.jsonl --out heads
    """
    console = Console(stderr=True)
    with one_line_errors(console):
        _refuse_unknown(recipe, "--recipe", ("medusa1", "medusa2"))
        _refuse_unknown(lm_heads, "--lm-heads", ("shared", "own", "low-rank"))
        chosen_joint = {
            "epochs": joint_epochs,
            "learning_rate": joint_rate,
            "heads_weight": heads_weight,
            "heads_ramp": ramp or None,
            "two_stages": False if one_stage else None,
            "self_distilled": False if on_data else None,
            "adapter_rank": adapter_rank,
            "max_perplexity_percent": max_perplexity_percent,
            "merge": merge or None,
        }
        if recipe == "medusa1" and (named := given(chosen_joint)):
            names = ", ".join(sorted(JOINT_OPTIONS[name] for name in named))
            raise ConfigurationError(f"{names} belong to --recipe medusa2; leave them out, or name it")
        if rank is not None and lm_heads != "low-rank":
            raise ConfigurationError(f"--rank is for --lm-heads low-rank, they are {lm_heads}")
        need_file(data, "--data")
        with busy(console, LIBRARY):
            from medusa_core import BaseOptions, CalibratePlan, JointPlan, TrainPlan
            from medusa_core import train as run_train

        chosen = {
            "num_heads": heads,
            "num_layers": layers,
            "shared_lm_head": lm_heads != "own",
            "lm_head_rank": (rank if rank is not None else DEFAULT_RANK) if lm_heads == "low-rank" else None,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "max_length": max_length,
            "rows_per_pass": rows,
            "passes_per_step": accumulate,
            "held_out_percent": held_out,
            "evaluate_every": evaluate_every,
            "patience": patience,
            "compile": compile,
            "seed": seed,
        }
        base = BaseOptions(model, device, quantize, spread, chat_template)
        joint = JointPlan(**given(chosen_joint)) if recipe == "medusa2" else None
        with watched(console, at_once=False) as watch:  # training has a bar of its own
            plan = TrainPlan(**given(chosen))
            trained = run_train(base, data, out, plan, joint, CalibratePlan() if measure else None, watch)
        if trained is None:
            return
        Console().print(_heads_table(trained.report))
        _tell(console, trained)


def _refuse_unknown(value: str, option: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigurationError(f"{option} {value} is not known; it must be {', '.join(known[:-1])} or {known[-1]}")


def _heads_table(report: Any) -> Table:
    """What the heads know of text they were not trained on."""
    table = Table(title="On held-out text: how often the true token is among a head's guesses", title_justify="left")
    for name in ("head", "first", "first 2", "first 3", "first 5", "nats"):
        table.add_column(name, justify="right")
    for head, nats in enumerate(report.scores.nats):
        shares = [f"{100 * report.scores.top(ranks)[head]:.1f} %" for ranks in (1, 2, 3, 5)]
        table.add_row(str(head + 1), *shares, f"{nats:.2f}")
    return table


def _tell(console: Console, trained: Any) -> None:
    """What the run came to, and what can be done with it."""
    report = trained.report
    steps = report.plan.steps(report.data.rows, report.plan.epochs)
    if steps < FEW_STEPS:
        say(
            console,
            f"The heads made {steps} steps over {report.data.tokens} tokens, too few to learn much: give more data or "
            "--epochs, or smaller steps (--max-length, --rows, --accumulate)",
        )
    if report.perplexity is not None:
        before, after = report.perplexity
        change = report.perplexity_change_percent
        say(console, f"The base's held-out perplexity: {before:.3f} before, {after:.3f} after ({change:+.2f} %)")
    if report.speed is not None:
        nodes = report.speed.nodes
        tokens = report.speed.calibration.tokens_at(nodes)
        found = f"{tokens:.2f} tokens per step with trees of {nodes} nodes, {report.speed.speed_up(nodes):.2f} times"
        said = f"{found} plain decoding" if nodes > 1 else "no tree pays with these heads, plain decoding is fastest"
        say(console, f"On this machine: {said}")
    say(console, f"Heads, report.json and pictures in {trained.heads}")
    heads = "" if report.served_with != report.model else f" --heads {shlex.quote(str(trained.heads))}"
    say(console, f"Serve them with: medusa serve --model {shlex.quote(report.served_with)}{heads}")
