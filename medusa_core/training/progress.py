"""One progress bar for everything that takes long."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

__all__ = ["Progress", "progress_bar"]


LINE = 120


class _Lines:
    """What is drawn over and over, as lines: a file has no place to go back to."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if line := text.strip():
            self._file.write(f"{line}\n")

    def flush(self) -> None:
        self._file.flush()


class Progress(Protocol):
    """Told how far the work is; shows it or not."""

    def update(self, n: int) -> object:
        """So many more units are done."""
        ...

    def set_postfix_str(self, s: str, refresh: bool) -> object:
        """A few words about the present state."""
        ...


@contextmanager
def progress_bar(title: str, total: int, done: int, unit: str, is_shown: bool = True) -> Iterator[Progress]:
    """A bar on stderr, drawn at most twice a second on a terminal; in a file a line of its own twice a minute."""
    is_terminal = sys.stderr.isatty()
    with tqdm(
        total=total,
        initial=done,
        desc=title,
        unit=unit,
        file=sys.stderr if is_terminal else _Lines(sys.stderr),
        mininterval=0.5 if is_terminal else 30.0,
        dynamic_ncols=is_terminal,
        ncols=None if is_terminal else LINE,
        disable=not is_shown,
    ) as bar:
        yield bar
