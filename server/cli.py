"""The `medusa` program: its commands by name. Each answers --help without loading a model library."""

import sys
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console
from typer.main import get_command

from server.commands.bench import bench
from server.commands.calibrate import calibrate
from server.commands.chat import chat
from server.commands.convert import convert
from server.commands.distill import distill
from server.commands.generate import generate
from server.commands.inspect import inspect
from server.commands.serve import serve
from server.commands.shared import show_tracebacks, tell_unexpected
from server.commands.train import train
from server.commands.verify import verify
from server.worker.process import quiet_libraries

__all__ = ["create_cli", "main"]

# In the order in which --help lists them.
COMMANDS = (serve, chat, generate, distill, train, calibrate, bench, verify, convert, inspect)


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
    cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    cli.callback()(_medusa)
    for command in COMMANDS:
        cli.command(command.__name__)(command)
    return cli


def main() -> None:
    """Entry point of the `medusa` script."""
    sys.excepthook = tell_unexpected
    # not the Typer itself, which would put a hook of its own in place of ours
    get_command(create_cli())(prog_name="medusa")
