"""What all commands share: errors as one line, options that were given, files that must be there."""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from medusa_core.errors import ConfigurationError, MedusaError
from server.logs import STDERR, SteadyStream

__all__ = [
    "LIBRARY",
    "busy",
    "given",
    "need_file",
    "note",
    "one_line_errors",
    "say",
    "show_tracebacks",
    "steady_console",
    "tell_unexpected",
    "watched",
    "without_codes",
]

USAGE_ERROR, FAILURE = 2, 1

# A bar that is full stops its clock, though another stage may follow.
NEARLY_ALL = 0.999

# What a command is busy with before it knows anything else: torch alone takes seconds.
LIBRARY = "loading the library"

# A model, or a file from the hub, may say anything; the codes with which a terminal is told to do something are no
# text. A carriage return only goes with the line break behind it.
_CODES = {code: "\ufffd" for code in (*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0))} | {0x0D: None}

# Set by the program's --debug, in the middle of whatever runs a command.
_SHOWS_TRACEBACKS: ContextVar[bool] = ContextVar("shows_tracebacks", default=False)


def show_tracebacks(is_wanted: bool) -> None:
    """Whether errors come with where they were raised; not unless somebody asks."""
    _SHOWS_TRACEBACKS.set(is_wanted)


def steady_console() -> Console:
    """Standard error for a program that must not end because nobody reads it or its disk is full."""
    return Console(file=cast(IO[str], SteadyStream(STDERR)))


@contextmanager
def one_line_errors(console: Console) -> Iterator[None]:
    """What goes wrong on purpose is one line and a status, never a traceback."""
    try:
        yield
    except MedusaError as error:
        if _SHOWS_TRACEBACKS.get():
            say(console, "".join(traceback.format_exception(error)).rstrip())
        _print_error(console, f"error: {error}")
        raise SystemExit(USAGE_ERROR if isinstance(error, ConfigurationError) else FAILURE) from None


def tell_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What `sys.excepthook` is in the program: one line for an error that nobody foresaw, too."""
    if _SHOWS_TRACEBACKS.get():
        sys.__excepthook__(kind, error, trace)
        return
    frames = traceback.extract_tb(trace)
    place = f", in {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    # what the system says of a file or a socket needs no more words
    line = str(error) if isinstance(error, OSError) else f"{kind.__name__}: {error}{place}"
    reason = " ".join(line.split())
    _print_error(steady_console(), f"error: {reason}; `medusa --debug ...` shows where it came from")


def _print_error(console: Console, line: str) -> None:
    console.print(without_codes(line), style="red", markup=False, highlight=False, soft_wrap=True)


def given(chosen: dict[str, Any]) -> dict[str, Any]:
    """The options that were chosen; the others keep the default of the plan they go into."""
    return {name: value for name, value in chosen.items() if value is not None}


def need_file(path: Path, option: str) -> None:
    """Raise ConfigurationError naming the option when the file it names is not there."""
    if not path.is_file():
        raise ConfigurationError(f"{option}: the file {str(path)!r} does not exist")


def without_codes(text: str) -> str:
    """The text as a terminal may show it: U+FFFD for each control character but tab and line break."""
    return text.translate(_CODES)


def say(console: Console, line: str) -> None:
    """One line as it stands: no markup, no colours for numbers, no wrapping; on a terminal no control codes either."""
    shown = without_codes(line) if console.is_terminal else line
    console.print(shown, markup=False, highlight=False, soft_wrap=True)


def note(console: Console, line: str, style: str = "dim") -> None:
    """One line beside what was asked for: on a terminal broken between words, elsewhere not at all."""
    console.print(without_codes(line), style=style, markup=False, highlight=False, soft_wrap=not console.is_interactive)


@contextmanager
def busy(console: Console, words: str) -> Iterator[None]:
    """Show on a terminal that something goes on of which nobody knows how long it takes."""
    # not on one that cannot go back to what it has shown (TERM=dumb)
    with console.status(words, spinner="dots") if console.is_interactive else nullcontext():
        yield


@contextmanager
def watched(console: Console, at_once: bool = True) -> Iterator[Callable[[str, float], None]]:
    """What a long command calls with its stage and the share done; a bar on a terminal, a line per stage elsewhere.

    at_once: False shows the bar from the first call on; a terminal has room for one, and until then another is shown.
    """
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
    task = progress.add_task("starting", total=1.0)
    shown: list[str] = []
    if at_once:
        progress.start()
    try:

        def watch(stage: str, share: float) -> None:
            progress.start()
            progress.update(task, description=stage, completed=min(share, NEARLY_ALL))
            if not console.is_interactive and stage not in shown[-1:]:
                shown.append(stage)
                say(console, stage)

        yield watch
    finally:
        progress.stop()
