"""`medusa chat`."""

import sys
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console

from medusa_core.errors import MissingChatTemplate
from server.commands.coloring import Coloring, legend
from server.commands.local_model import Choices, LocalModel, check_mode, loading
from server.commands.options import (
    Adapter,
    ChatTemplate,
    Color,
    Device,
    DType,
    Heads,
    LongestAnswer,
    MaxContext,
    MinP,
    Mode,
    Model,
    Quantize,
    Seed,
    Temperature,
    Threads,
    TopK,
    TopP,
    TreeNodes,
)
from server.commands.shared import note, one_line_errors
from server.commands.talk import Talk

__all__ = ["chat"]


def chat(
    model: Model = "demo",
    heads: Heads = None,
    device: Device = "auto",
    dtype: DType = "auto",
    quantize: Quantize = "none",
    adapter: Adapter = True,
    max_context: MaxContext = None,
    tree_nodes: TreeNodes = None,
    threads: Threads = None,
    chat_template: ChatTemplate = None,
    system: Annotated[str | None, typer.Option(help="what the model is told first")] = None,
    max_tokens: LongestAnswer = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    mode: Mode = "auto",
    color: Color = "steps",
) -> None:
    """Talk with a model in the terminal and see what each step of its speculation brings.

    Ctrl-C stops an answer, Ctrl-D ends the conversation, /help tells the commands. Nothing is kept but by /save.
    """
    out, notes = Console(soft_wrap=True), Console(stderr=True)
    with one_line_errors(notes):
        check_mode(mode)
        options = {
            "model": model,
            "heads": heads,
            "device": device,
            "dtype": dtype,
            "quantize": quantize,
            "adapter": adapter,
            "max_context": max_context,
            "tree_nodes": tree_nodes,
            "num_threads": threads,
        }
        with loading(notes) as watch:
            local = LocalModel.load(options, chat_template, watch)
        if not local.can_chat:
            raise MissingChatTemplate(model)
        choices = Choices(temperature, top_p, top_k, min_p, seed, max_tokens, mode)
        _greet(local, out, notes, color)
        _edit_lines(out)
        Talk(local, out, notes, _read_line, choices, system, color).run()


def _greet(local: LocalModel, out: Console, notes: Console, color: Coloring) -> None:
    if sys.stdin.isatty():
        note(notes, f"{local.describe()}; /help tells what can be typed")
        legend(out, color)


def _edit_lines(out: Console) -> None:
    """Let typed lines be edited, and remembered as long as the program runs; several that are pasted are one."""
    if not sys.stdin.isatty():
        return
    # input() edits with it as soon as it is imported; not every Python was built with it
    with suppress(ImportError):
        import readline

        if out.is_interactive:
            # else each pasted line would be asked by itself
            readline.parse_and_bind("set enable-bracketed-paste on")


def _read_line(prompt: str) -> str:
    """A line of the input."""
    if not sys.stdin.isatty():
        return input()
    try:
        if sys.stdout.isatty():
            return input(prompt)
        # the answers go elsewhere, and a prompt is no part of them
        _note(prompt)
        return input()
    except EOFError:
        # what the shell says next begins on a line of its own
        _note("\n")
        raise


def _note(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
