"""Colours for the tokens of an answer in a terminal, by the step that brought them or by who proposed them."""

from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.text import Text

from medusa_core.errors import MedusaError
from server.commands.shared import without_codes
from server.commands.spoken import Spelt, Spoken

__all__ = ["SOURCE_STYLES", "Coloring", "legend", "painted", "speak"]

Coloring = Literal["steps", "sources", "none"]

# The hues of the page; a terminal's own sixteen colours can be read on its background, whichever it has.
SOURCE_STYLES = {
    "base": "default",
    "heads": "blue",
    "lookup": "yellow",
    "recycling": "green",
    "prediction": "magenta",
    "grammar": "red",
}

STEP_STYLES = ("cyan", "magenta")


def painted(step: Sequence[Spelt], number: int, coloring: Coloring) -> Text:
    """The text of a step as a terminal may show it; steps are numbered from 0."""
    line = Text()
    for one in step:
        style = {
            "steps": STEP_STYLES[number % len(STEP_STYLES)],
            "sources": SOURCE_STYLES.get(one.source, "default"),
            "none": "default",
        }[coloring]
        line.append(without_codes(one.text), style)
    return line


def legend(console: Console, coloring: Coloring) -> None:
    """Say what the colours mean, where any are shown."""
    if not console.is_terminal or console.color_system is None or console.no_color or coloring == "none":
        return
    if coloring == "steps":
        line = Text("colours change with every step: ", "dim")
        line.append("one run", STEP_STYLES[0]).append(" was accepted ", STEP_STYLES[1]).append(
            "at once", STEP_STYLES[0]
        )
    else:
        line = Text("who proposed a token: ", "dim")
        for source, style in SOURCE_STYLES.items():
            line.append(f"{source} ", style)
    console.print(line, soft_wrap=True)


def speak(out: Console, spoken: Spoken, coloring: Coloring) -> None:
    """Show an answer step by step as it comes; what follows begins on a line of its own, also behind half of one."""
    has_begun = False
    try:
        for number, step in enumerate(spoken):
            has_begun = True
            if not out.is_terminal:
                # a file gets the text as it is
                out.file.write("".join(one.text for one in step))
                out.file.flush()
            else:
                out.print(painted(step, number, coloring), end="", soft_wrap=True, highlight=False)
    except MedusaError:
        if has_begun:
            out.print()
        raise
    out.print()
