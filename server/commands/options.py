"""Options that several commands share, described once."""

from pathlib import Path
from typing import Annotated

import typer

from medusa_core.config import Quantization
from medusa_core.errors import ConfigurationError
from server.commands.coloring import Coloring

__all__ = [
    "Adapter",
    "ChatTemplate",
    "Color",
    "DType",
    "Device",
    "Heads",
    "Limit",
    "LongestAnswer",
    "MaxContext",
    "MinP",
    "Mode",
    "Model",
    "Quantize",
    "Seed",
    "Temperature",
    "Threads",
    "Tokens",
    "TopK",
    "TopP",
    "TreeNodes",
    "sizes",
]

SAMPLING = "Sampling"

Model = Annotated[str, typer.Option(help="Hugging Face id or folder of the base model; demo is built in")]
Heads = Annotated[str | None, typer.Option(help="id, folder or file of the draft heads; left out: inside the model")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")]
Quantize = Annotated[
    Quantization,
    typer.Option(metavar="<name>", help="hold the base's weights in few bits: none, int8, int4, fp8, bnb8 or bnb4"),
]
Adapter = Annotated[bool, typer.Option(help="merge the adapter that stands beside the heads, if one does")]
MaxContext = Annotated[int | None, typer.Option(min=1, help="tokens of prompt and answer together")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; left out: all cores but one")]
ChatTemplate = Annotated[Path | None, typer.Option(help="Jinja chat template for models without one")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="answer only the first so many conversations, and so many texts")
]
Tokens = Annotated[int | None, typer.Option(min=2, help="longest answer, in tokens")]
TreeNodes = Annotated[
    int | None, typer.Option(min=1, help="nodes of one verified tree; left out: the fastest at every step")
]
LongestAnswer = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="longest answer; left out: what the context holds")
]
Temperature = Annotated[
    float | None, typer.Option(min=0, max=2, help="0 is greedy; left out: the model's", rich_help_panel=SAMPLING)
]
TopP = Annotated[float | None, typer.Option(min=0, max=1, help="left out: the model's", rich_help_panel=SAMPLING)]
TopK = Annotated[int | None, typer.Option(min=1, help="left out: the model's", rich_help_panel=SAMPLING)]
MinP = Annotated[float | None, typer.Option(min=0, max=1, help="left out: the model's", rich_help_panel=SAMPLING)]
Seed = Annotated[int | None, typer.Option(help="same seed, same answer", rich_help_panel=SAMPLING)]
Mode = Annotated[str, typer.Option(help="auto, tree, static, chain or off: how trees are drafted")]
Color = Annotated[
    Coloring, typer.Option(help="on a terminal: by step, by who proposed the token, or none; NO_COLOR is none, too")
]


def sizes(words: str | None, option: str) -> tuple[int, ...] | None:
    """Numbers separated by commas, each once and in order; None when the option was left out."""
    if words is None:
        return None
    try:
        return tuple(sorted({int(word) for word in words.split(",")}))
    except ValueError as error:
        raise ConfigurationError(f"{option} is {words!r}, it must be numbers separated by commas: 4,8,16") from error
