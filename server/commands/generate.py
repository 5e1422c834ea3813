"""`medusa generate`."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from medusa_core.errors import ConfigurationError
from server.commands.coloring import speak
from server.commands.local_model import Choices, LocalModel, check_mode, loading, stoppable
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
from server.commands.shared import note, one_line_errors, say
from server.commands.spoken import Spoken, told

__all__ = ["generate"]

INTERRUPTED = 130  # as shells have it


def generate(
    prompt: Annotated[str, typer.Argument(help="what to answer, or with --raw what to continue; - reads the input")],
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
    raw: Annotated[bool, typer.Option("--raw", help="continue the text instead of answering it as a chat")] = False,
    max_tokens: LongestAnswer = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    mode: Mode = "auto",
    color: Color = "steps",
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object at the end: text, statistics, what each step brought")
    ] = False,
) -> None:
    """Answer one prompt in the terminal, with the statistics of its speculation."""
    out, console = Console(soft_wrap=True), Console(stderr=True)
    with one_line_errors(console):
        check_mode(mode)
        words = _input() if prompt == "-" else prompt
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
        with loading(console) as watch:
            local = LocalModel.load(options, chat_template, watch)
        choices = Choices(temperature, top_p, top_k, min_p, seed, max_tokens, mode)
        with stoppable() as is_stopped:
            if raw or not local.can_chat:
                spoken = local.go_on(words, choices, is_stopped)
            else:
                spoken = local.reply([{"role": "user", "content": words}], choices, is_stopped)
            if as_json:
                _print_json(out, model, spoken)
            else:
                speak(out, spoken, color)
                note(console, told(spoken.took))
        if spoken.took.finish_reason is None:
            raise typer.Exit(INTERRUPTED)


def _input() -> str:
    try:
        words = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the input is no UTF-8 text: {error}") from error
    if not words.strip():
        raise ConfigurationError("the prompt - stands for the input, which is empty; pipe some text into the command")
    return words


def _print_json(out: Console, model: str, spoken: Spoken) -> None:
    steps = [[asdict(one) for one in step] for step in spoken]
    took = spoken.took
    record = {
        "model": model,
        "text": spoken.text,
        **asdict(took),
        "tokens_per_step": took.tokens_per_step,
        "tokens_per_s": took.tokens_per_s,
        "brought": steps,
    }
    say(out, json.dumps(record, ensure_ascii=False))
