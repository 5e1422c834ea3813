"""The log: one chain for our lines, uvicorn's and the libraries', on a stream that can neither stop nor end the server.

Modules say what they have to say through the standard library's loggers, fields in `extra`; structlog renders it. No
line ever holds a prompt, an answer or a key: libraries speak from `warning` on only, since some of them tell at `debug`
whatever they send, and a traceback shows no variables.
"""

import io
import json
import logging
import os
import select
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars, clear_contextvars, merge_contextvars
from structlog.processors import ExceptionRenderer, JSONRenderer, TimeStamper
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name
from structlog.tracebacks import ExceptionDictTransformer
from structlog.types import EventDict, Processor, WrappedLogger

__all__ = [
    "STDERR",
    "LevelSwitch",
    "LogFormat",
    "LogLevel",
    "Rendering",
    "SteadyStream",
    "ToldCrash",
    "bind",
    "bound",
    "configure_logs",
    "create_handler",
    "fill_standard_streams",
    "rendering_of",
    "set_level",
]

LogLevel = Literal["critical", "error", "warning", "info", "debug"]
LogFormat = Literal["auto", "console", "json"]
Rendering = Literal["console", "json"]

STDERR = 2
# What a line begins with, as far as it is known.
FIRST = ("timestamp", "level", "event", "logger", "process", "request_id", "trace_id", "span_id")
OUR_LOGGERS = ("medusa", "medusa_core")
# What the rest of a line waits for a reader who has taken its beginning.
PATIENCE_MS = 50
MAX_FRAMES = 30
# Empties a terminal's line, on which the other process may show a bar, and goes back to its beginning.
CLEARED = "\r\x1b[2K"

logger = logging.getLogger("medusa.server")


class SteadyStream(io.TextIOBase):
    """A stream whose reader may be slow, stuck or gone, and whose disk may be full: what cannot be written is lost.

    lost: writes that found no room since the owner last looked, for the owner to tell and set to 0.
    """

    def __init__(self, descriptor: int) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._is_cut = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Always UTF-8; what it cannot say is escaped."""
        return "utf-8"

    def fileno(self) -> int:
        """The descriptor it writes to."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether somebody reads along."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Always: nobody is told of what is lost but the owner."""
        return True

    def write(self, text: str) -> int:
        """Write all of it, or count it as lost. Raises nothing and waits for nobody."""
        data = text.encode("utf-8", "backslashreplace")
        try:
            left = self._put(b"\n" + data if self._is_cut else data)
        except OSError:
            # full, closed, or its reader has ended
            self.lost += 1
        else:
            self._is_cut = 0 < len(left) < len(data)
            self.lost += 1 if left else 0
        return len(text)

    def _put(self, data: bytes) -> bytes:
        """Write what there is room for; returns the rest."""
        # what is larger than this is no longer written as one piece beside the other process's lines
        is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        size = len(data) if is_file else select.PIPE_BUF
        room = select.poll()
        room.register(self._descriptor, select.POLLOUT)
        left = data
        while left and room.poll(0 if left is data else PATIENCE_MS):
            left = left[os.write(self._descriptor, left[:size]) :]
        return left


def _without_color(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """Uvicorn brings its messages a second time, in colours."""
    fields.pop("color_message", None)
    return fields


def _visible(text: str) -> str:
    """One line that moves no cursor: whatever is not printable is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _one_line(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """What a terminal is shown: one line, and behind it an indented traceback, which no text can be mistaken for."""
    shown: EventDict = {}
    for name, value in fields.items():
        if name == "exception":
            shown[name] = "\n".join("    " + _visible(line) for line in str(value).splitlines())
        elif name.startswith("_"):
            shown[name] = value
        else:
            is_plain = value is None or isinstance(value, bool | int | float)
            shown[_visible(name)] = value if is_plain else _visible(str(value).rstrip())
    return shown


def _stripped(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    fields["event"] = str(fields["event"]).rstrip()
    return fields


def _renderers(rendering: Rendering, in_color: bool) -> Sequence[Processor]:
    if rendering == "json":
        # of a failed request the variables are its prompt
        trace = ExceptionDictTransformer(show_locals=False, max_frames=MAX_FRAMES, use_rich=False)
        return ExceptionRenderer(trace), _stripped, ProcessorFormatter.remove_processors_meta, JSONRenderer()
    plain = structlog.dev.ConsoleRenderer(
        colors=in_color, sort_keys=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    return ExceptionRenderer(), _one_line, ProcessorFormatter.remove_processors_meta, plain


class _LineHandler(logging.StreamHandler[SteadyStream]):
    """Writes lines, and how many were lost as soon as lines can be written again."""

    def __init__(self, stream: SteadyStream, before: str) -> None:
        """before: what goes in front of each line."""
        super().__init__(stream)
        self._before = before

    def format(self, record: logging.LogRecord) -> str:
        return self._before + super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        lost = self.stream.lost
        super().emit(record)
        if lost > 0 and self.stream.lost == lost:
            self.stream.lost = 0
            message = "lines of the log were lost: there was no room, or nobody read them"
            told = logging.LogRecord("medusa.server", logging.WARNING, __file__, 0, message, (), None)
            told.lines = lost
            super().emit(told)

    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be rendered says where it came from, and nothing of what it was to say."""
        told = {"level": "error", "event": "a line of the log cannot be shown", "logger": record.name}
        self.stream.write(json.dumps(told) + self.terminator)


def create_handler(stream: SteadyStream, rendering: Rendering, process: str) -> logging.Handler:
    """A handler that writes records to a stream, with what is bound to the request they belong to.

    process: who speaks, in every line.
    """

    def in_order(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
        fields["process"] = process
        return {name: fields[name] for name in (*FIRST, *fields) if name in fields}

    is_lively = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    chain: list[Processor] = [
        TimeStamper(fmt="iso", utc=True),
        add_log_level,
        add_logger_name,
        ExtraAdder(),
        _without_color,
        merge_contextvars,
        in_order,
        *_renderers(rendering, is_lively and "NO_COLOR" not in os.environ),
    ]
    handler = _LineHandler(stream, CLEARED if is_lively and rendering == "console" else "")
    handler.setFormatter(ProcessorFormatter(processors=chain))
    return handler


def rendering_of(choice: LogFormat) -> Rendering:
    """How lines look on standard error: as chosen, or made for people on a terminal and for programs elsewhere."""
    if choice != "auto":
        return choice
    return "console" if os.isatty(STDERR) else "json"


def configure_logs(rendering: Rendering, level: LogLevel, process: str) -> None:
    """Send all that is logged in this process, and all warnings, to standard error.

    process: who speaks, in every line.
    """
    logging.getLogger().handlers = [create_handler(SteadyStream(STDERR), rendering, process)]
    logging.captureWarnings(True)
    set_level(level)


def set_level(level: LogLevel) -> None:
    """From which level on our own lines are written; the libraries' never below `warning`."""
    number: int = getattr(logging, level.upper())
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(number)
    logging.getLogger().setLevel(max(number, logging.WARNING))
    # where it listens and when it ends is said in the banner, and told again to who looks for a fault
    logging.getLogger("uvicorn").setLevel(logging.INFO if number <= logging.DEBUG else max(number, logging.WARNING))


class ToldCrash:
    """Around all that a process does: an error that nobody expected ends it with a line of the log and status 1."""

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Tell of it; left to itself Python would print it raw."""
        if isinstance(error, Exception):
            logger.critical("the process ends by an error that nobody expected", exc_info=error)
            raise SystemExit(1) from error


class LevelSwitch:
    """Turns `debug` on and off while the server runs.

    level:     what it was started with.
    on_change: told of every new level; the worker has a log of its own.
    """

    def __init__(self, level: LogLevel, on_change: Callable[[LogLevel], None]) -> None:
        self.level: LogLevel = level
        self._quiet: LogLevel = level if level != "debug" else "info"
        self._on_change = on_change

    def toggle(self) -> None:
        """From any level to `debug`, and back; from `debug` to `info` where the server was started with it."""
        self.level = "debug" if self.level != "debug" else self._quiet
        set_level(self.level)
        self._on_change(self.level)
        logger.warning("the log's level has been switched", extra={"to": self.level})


def bind(**fields: str) -> None:
    """Say this in every further line of the task that calls, and nothing more of what was bound before."""
    clear_contextvars()
    bind_contextvars(**fields)


def bound(**fields: str | None) -> AbstractContextManager[None]:
    """Say this in every line while the context lasts; of None there is nothing to say."""
    return bound_contextvars(**{name: value for name, value in fields.items() if value is not None})


def fill_standard_streams() -> None:
    """Give a process that was started without them the null device as standard streams, and its children too.

    Else its first sockets would take their numbers, and whatever a library writes to standard error would go to a
    client.
    """
    for descriptor in range(STDERR + 1):
        try:
            # what a library opened meanwhile has the number, but is closed in a child, where a pipe would take it
            os.set_inheritable(descriptor, True)
        except OSError:
            # the lowest free number, which is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
