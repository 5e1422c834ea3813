"""The `medusa` program: its commands by name. Each answers --help without loading a model library."""

import os
import shutil
import sys
from importlib import metadata
from io import TextIOWrapper
from typing import Annotated, Literal, TextIO

import typer
from rich.console import Console
from typer.main import get_command

from server.commands.bench import bench
from server.commands.calibrate import calibrate
from server.commands.chat import chat
from server.commands.convert import convert
from server.commands.distill import distill
from server.commands.doctor import doctor
from server.commands.generate import generate
from server.commands.inspect import inspect
from server.commands.serve import serve
from server.commands.shared import show_tracebacks, tell_unexpected
from server.commands.train import train
from server.commands.verify import verify
from server.worker.process import quiet_libraries

__all__ = ["create_cli", "main"]

# In the order in which --help lists them.
COMMANDS = (serve, chat, generate, distill, train, calibrate, bench, verify, convert, inspect, doctor)

# Columns of a terminal from which on help is shown as a table.
LEAST_COLUMNS = 80

# What is shown behind the options of each.
EXAMPLES = {
    "serve": (
        "medusa serve",
        "medusa serve --model ./my-model --heads ./my-heads --device cuda --max-context 8192",
        "medusa serve --config medusa.yaml --show-settings",
        "medusa serve --host 0.0.0.0 --api-key sesame --served-model-name my-model,gpt-4o",
    ),
    "chat": (
        "medusa chat",
        "medusa chat --model ./my-model --heads ./my-heads --color sources --system 'Answer in one sentence.'",
    ),
    "generate": (
        "medusa generate 'What does textwrap.dedent do?'",
        "medusa generate --raw 'def read_text(path):' --max-tokens 64",
        "medusa generate - --json < question.txt > answer.json",
    ),
    "distill": ("medusa distill --model ./my-model --prompts prompts.jsonl --out answers.jsonl",),
    "train": (
        "medusa train --model ./my-model --data answers.jsonl --out ./my-heads",
        "medusa train --model ./my-model --data answers.jsonl --out ./my-heads --recipe medusa2",
    ),
    "calibrate": ("medusa calibrate --model ./my-model --heads ./my-heads --data conversations.jsonl",),
    "bench": (
        "medusa bench",
        "medusa bench --model ./my-model --heads ./my-heads --prompts prompts.jsonl --out ./report",
    ),
    "verify": ("medusa verify", "medusa verify --model ./my-model --heads ./my-heads --prompts prompts.jsonl"),
    "convert": ("medusa convert demo ./demo-for-vllm --layout vllm",),
    "inspect": ("medusa inspect demo", "medusa inspect ./my-heads --json"),
    "doctor": ("medusa doctor", "medusa doctor --model ./my-model --heads ./my-heads"),
}


def _print_version(is_asked: bool) -> None:
    if is_asked:
        Console().print(f"medusa {metadata.version('medusa-server')}", markup=False, highlight=False)
        raise typer.Exit


def _medusa(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="show the version and exit")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show where errors come from, not only what they are")] = False,
) -> None:
    """Answers one request at a time, as fast as the model allows: an OpenAI-compatible server with Medusa trees."""
    show_tracebacks(debug)
    quiet_libraries()


def create_cli() -> typer.Typer:
    """The commands by name."""
    # side by side with their meaning, the longest options need this much; narrower, their names were cut
    style: Literal["rich"] | None = "rich" if shutil.get_terminal_size().columns >= LEAST_COLUMNS else None
    cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=style)
    cli.callback()(_medusa)
    for command in COMMANDS:
        # each in a paragraph of its own, as lines of one are joined
        shown = "\n\n".join(["Examples:", *EXAMPLES[command.__name__]])
        # the source breaks lines where no terminal needs to
        paragraphs = [" ".join(lines.split()) for lines in str(command.__doc__).split("\n\n")]
        cli.command(command.__name__, help="\n\n".join(paragraphs), epilog=shown)(command)
    return cli


def _tolerate_other_encodings(typed: TextIO, shown: TextIO) -> None:
    """Let what is no text be refused where it is used, and show what a terminal has no character for as `?`."""
    for stream, errors in ((typed, "surrogateescape"), (shown, "replace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


def main() -> None:
    """Entry point of the `medusa` script."""
    sys.excepthook = tell_unexpected
    if sys.stdin is None:  # closed by whoever started the program
        sys.stdin = open(os.devnull, encoding="utf-8")
    _tolerate_other_encodings(sys.stdin, sys.stdout)
    # not the Typer itself, which would put a hook of its own in place of ours
    get_command(create_cli())(prog_name="medusa")
