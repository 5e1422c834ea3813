"""One progress bar for everything that takes long."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm  # type: ignore[import-untyped]

__all__ = ["Progress", "progress_bar"]


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
    """A bar on stderr, drawn at most twice a second."""
    with tqdm(
        total=total, initial=done, desc=title, unit=unit, mininterval=0.5, dynamic_ncols=True, disable=not is_shown
    ) as bar:
        yield bar
