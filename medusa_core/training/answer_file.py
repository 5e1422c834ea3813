"""The file that distilled answers go to: one line each, appended whole, so that a killed run loses and doubles nothing.

Beside it stands `NAME.plan.json` with what the answers depend on; a run that differs in it is refused.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from medusa_core.errors import ConfigurationError

__all__ = ["AnswerFile"]


class AnswerFile:
    """An output file that this run holds alone.

    answered: the digest of each prompt that has its answer already, by the prompt's line.
    """

    def __init__(self, path: Path, descriptor: int, answered: dict[int, str], size: int) -> None:
        self.answered = answered
        self._path, self._descriptor, self._size = path, descriptor, size

    @classmethod
    @contextmanager
    def open(cls, path: Path, plan: Mapping[str, Any]) -> Iterator[Self]:
        """Take up or begin the answers in `path`, which depend on `plan`; a torn last line is cut off.

        Raises ConfigurationError when it cannot be written, was begun with another plan, is no file of answers, or is
        being written by another run.
        """
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is not a file; name one for the answers")
        if path.suffix == ".gz":
            raise ConfigurationError(f"{path}: answers are appended as plain text, which a .gz is not; leave .gz out")
        with _disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            with _disk_errors(path):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ConfigurationError(f"another run is writing to {path}; wait for it, or end it") from error
                _settle_plan(path, plan)
                answered, size = _answered(path)
                os.truncate(path, size)
            yield cls(path, descriptor, answered, size)
        finally:
            os.close(descriptor)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write records and wait until they are on the disk; when that fails, none of them is in the file."""
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        with _disk_errors(self._path):
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._size)
                raise
        self._size += len(content)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}; the answers that are there are whole, and the same command goes "
            "on behind them"
            if path.exists()
            else f"cannot write {path}: {error.strerror}"
        ) from error


def _settle_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Compare the plan with the one that the answers were begun with, or write it down before the first answer."""
    beside = path.with_name(path.name + ".plan.json")
    if path.stat().st_size > 0:
        try:
            begun = json.loads(beside.read_text(encoding="utf-8"))
            differing = sorted(name for name in {*plan, *begun} if plan.get(name) != begun.get(name))
        except (FileNotFoundError, ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"{path} was not written by distill, or its {beside.name} is gone; name another output file"
            ) from error
        if differing:
            changes = ", ".join(f"{name} {begun.get(name)!r} (now {plan.get(name)!r})" for name in differing)
            raise ConfigurationError(
                f"{path} was begun with {changes}; repeat those options, or name another output file"
            )
        return
    partial = beside.with_name(beside.name + ".partial")
    partial.write_text(json.dumps(dict(plan), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, beside)


def _answered(path: Path) -> tuple[dict[int, str], int]:
    """Digests by line of the prompts that have an answer, and the size of the file up to its last whole line."""
    found: dict[int, str] = {}
    size = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            size += len(line)
            try:
                content = json.loads(line)
                found[int(content["source"])] = str(content["digest"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigurationError(
                    f"{path}, line {number}: not written by distill ({error!r}); name another output file"
                ) from error
    return found, size
