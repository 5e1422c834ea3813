"""Tool calls found in the text of an answer while it still arrives.

A forced call is known from its first character, so its arguments stream as the model writes them. A model that may
also answer in words has to finish a call before it is one: what looked like a call and is none stays content.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from medusa_core.tool_formats import ToolFormat
from server.call_events import CallArguments, CallOpened, Content, Event, Reasoning

__all__ = ["CallStream", "ForcedCallStream", "FreeCallStream", "ResponseParser"]

CONTENT_FIELD = "content"
CALLS_FIELD = "tool_calls"
# Response templates disagree about the name; text of any other field is for no reader.
TEXT_FIELDS: dict[str, type[Content] | type[Reasoning]] = {
    "content": Content,
    "reasoning": Reasoning,
    "reasoning_content": Reasoning,
    "thinking": Reasoning,
}

# The end of a region is looked for character by character in the slice of text that holds it.
SLICE = 256
# A parser keeps all it has read; it is replaced when more than this many characters of it are content that has left.
MAX_KEPT = 8192
# More characters than stand between the arguments of one forced call and those of the next.
MAX_HEAD = 256

# What transformers' parser raises on a region that is not as its template says; nesting may be bottomless.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class CallStream(Protocol):
    """The text of one answer, in order and in any pieces; events put together do not depend on where it was cut."""

    def feed(self, text: str) -> list[Event]:
        """What more text makes certain."""

    def finish(self) -> list[Event]:
        """What the end of the answer makes certain; nothing is fed after it."""


class ResponseParser(Protocol):
    """What is used of transformers' parser, as `tokenizer.get_response_parser` returns it."""

    initial_events: list[dict[str, Any]]

    def feed(self, text: str) -> list[dict[str, Any]]:
        """Regions that more text opens, adds to and closes; raises on one that cannot be parsed."""

    def finalize(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The message, and what was held back."""


class ForcedCallStream:
    """Calls under `forced_call_grammar`: each opened with its name, arguments byte for byte as they come.

    Special tokens of the format may be missing from the text. A call that is cut off before its arguments begin gives
    no event; one that is cut off later leaves the beginning of valid JSON.
    """

    def __init__(self, tool_format: ToolFormat, new_id: Callable[[], str]) -> None:
        self._head_pattern = _head_pattern(tool_format)
        self._new_id = new_id
        self._head = ""
        self._arguments: _JsonObject | None = None
        self._calls = 0

    def feed(self, text: str) -> list[Event]:
        """The name once the arguments begin, and all of their text."""
        events: list[Event] = []
        while text:
            if self._arguments is None:
                text = self._read_head(text, events)
            else:
                text = self._read_arguments(self._arguments, text, events)
        return events

    def finish(self) -> list[Event]:
        """Nothing: all that is certain has been said."""
        return []

    def _read_head(self, text: str, events: list[Event]) -> str:
        self._head += text
        found = self._head_pattern.search(self._head)
        if found is None:
            self._head = self._head[-MAX_HEAD:]
            return ""
        events.append(CallOpened(self._calls, self._new_id(), found["name"]))
        self._calls += 1
        rest, self._head, self._arguments = self._head[found.end() :], "", _JsonObject()
        return rest

    def _read_arguments(self, arguments: "_JsonObject", text: str, events: list[Event]) -> str:
        end = arguments.end_in(text)
        events.append(CallArguments(self._calls - 1, text[:end]))
        if end is None:
            return ""
        self._arguments = None
        return text[end:]


def _head_pattern(tool_format: ToolFormat) -> re.Pattern[str]:
    """What stands before the arguments of a call, which are an object."""
    markers = "|".join(re.escape(marker) for marker in tool_format.markers)

    def pattern(text: str) -> str:
        parts = re.split(f"({markers})", text) if markers else [text]
        return "".join(f"(?:{re.escape(part)})?" if part in tool_format.markers else re.escape(part) for part in parts)

    before, after = pattern(tool_format.before_name), pattern(tool_format.before_arguments)
    return re.compile(f"{before}(?P<name>[A-Za-z0-9_-]{{1,64}}){after}(?=\\{{)")


class _JsonObject:
    """Finds the end of a well-formed JSON object whose text arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_string = False
        self._is_escaped = False

    def end_in(self, text: str) -> int | None:
        """Characters of the next piece up to the brace that ends the object, None when it goes on."""
        for position, character in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_escaped = character == "\\"
                self._is_string = character != '"'
            elif character == '"':
                self._is_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return position + 1
        return None


class FreeCallStream:
    """An answer that may hold calls, as a response template tells them from its other text.

    A call is reported when its region ends, whole. A region that holds no call (broken JSON, no name, arguments that
    are no object) is content, markers included, and what follows it is read as if nothing had happened. Whitespace
    that only parts reasoning and calls from content, or from the ends of the answer, is not reported.

    Transformers' parser neither says where a region ends nor survives one that it cannot parse, so each region gets
    parsers of its own: the slice of text that ends a region is read a second time, character by character, by a new
    one, and what comes after the region by yet another. Kept is at most the longest region, MAX_KEPT characters of
    content and a slice; each character is read a bounded number of times.

    make_parser: a parser for an answer that continues the text it is given.
    prompt:      what the answer continues; it may have begun a region already, such as reasoning.
    """

    def __init__(self, make_parser: Callable[[str], ResponseParser], prompt: str, new_id: Callable[[], str]) -> None:
        self._make_parser = make_parser
        self._new_id = new_id
        self._calls = 0
        self._content = _Trimmed(Content, meets_region=False)
        self._reasoning = _Trimmed(Reasoning, meets_region=True)
        self._begin(prompt)

    def _begin(self, prefix: str) -> None:
        self._prefix = prefix
        self._parser = self._make_parser(prefix)
        # all text since, and the pieces of it that were content or reasoning
        self._fed: list[str] = []
        self._shown: list[str] = []
        self._fed_length = self._shown_length = 0

    def feed(self, text: str) -> list[Event]:
        """Text as soon as it can begin no call, calls as soon as they end."""
        events: list[Event] = []
        for start in range(0, len(text), SLICE):
            rest = text[start : start + SLICE]
            while rest:
                rest = self._feed_slice(rest, events)
        return events

    def finish(self) -> list[Event]:
        """What was held back; a call that the end cut off is content."""
        events: list[Event] = []
        try:
            _, parsed = self._parser.finalize()
        except MALFORMED:
            self._show_region("".join(self._fed), events)
        else:
            self._show(parsed, events)
            closed = next(filter(_ends_region, parsed), None)
            if closed is not None:
                self._end_region(closed, "".join(self._fed), events)
        events += self._content.finish()
        return events

    def _feed_slice(self, text: str, events: list[Event]) -> str:
        """Read a slice, or as much of it as ends a region; returns what is still to be read."""
        try:
            parsed = self._parser.feed(text)
        except MALFORMED:
            return self._feed_end_of_region(text, events)
        if any(map(_ends_region, parsed)):
            return self._feed_end_of_region(text, events)
        self._fed.append(text)
        self._fed_length += len(text)
        self._show(parsed, events)
        if self._fed_length == self._shown_length > MAX_KEPT and not self._parser.initial_events:
            self._begin("")
        return ""

    def _feed_end_of_region(self, text: str, events: list[Event]) -> str:
        before = "".join(self._fed)
        whole = before + text
        parser = self._make_parser(self._prefix)
        parsed: list[dict[str, Any]] = []
        closed: dict[str, Any] | None = None
        end = len(before)
        try:
            parsed += parser.feed(before)
            while closed is None and end < len(whole):
                end += 1
                found = parser.feed(whole[end - 1])
                closing = next((place for place, event in enumerate(found) if _ends_region(event)), len(found))
                parsed += found[:closing]
                if closing < len(found):
                    closed = found[closing]
                    end -= _length_read_ahead(parser, found[closing + 1 :])
        except MALFORMED:
            closed = None
        self._show(parsed, events, self._shown_length)
        # a region of no length would be met again for ever
        end = max(end, 1)
        if closed is None:
            self._show_region(whole[:end], events)
        else:
            self._end_region(closed, whole[:end], events)
        self._begin("")
        return whole[end:]

    def _show(self, parsed: Iterable[dict[str, Any]], events: list[Event], known: int = 0) -> None:
        """Report content and reasoning but for the first `known` characters."""
        for event in parsed:
            kind = TEXT_FIELDS.get(event["field"])
            if event["type"] != "region_chunk" or kind is None:
                continue
            text = event["text"][known:]
            known = max(0, known - len(event["text"]))
            if text:
                self._shown.append(text)
                self._shown_length += len(text)
                events += (self._content if kind is Content else self._reasoning).add(text)

    def _end_region(self, closed: dict[str, Any], whole: str, events: list[Event]) -> None:
        calls = _calls_of(closed["value"]) if closed["field"] == CALLS_FIELD else []
        if calls is None:
            self._show_region(whole, events)
            return
        self._content.end_region()
        self._reasoning.end_region()
        for name, arguments in calls:
            events += [CallOpened(self._calls, self._new_id(), name), CallArguments(self._calls, arguments)]
            self._calls += 1

    def _show_region(self, whole: str, events: list[Event]) -> None:
        """Report all text behind what was reported, as it was written."""
        start = 0
        for text in self._shown:
            start = whole.index(text, start) + len(text)
        events += self._content.add(whole[start:])


def _ends_region(event: dict[str, Any]) -> bool:
    """Whether a part of the answer ends that is more than plain content, which is closed by whatever follows it."""
    return bool(event["type"] == "region_close" and event["field"] != CONTENT_FIELD)


def _length_read_ahead(parser: ResponseParser, later: list[dict[str, Any]]) -> int:
    """Characters that a parser had to see behind a region to know that it ended; the parser is used up.

    A template whose regions end where the next one's marker begins must leave some of that marker to be read.
    """
    try:
        _, held = parser.finalize()
    except MALFORMED:
        held = []
    return sum(len(event["text"]) for event in [*later, *held] if event["type"] == "region_chunk")


class _Trimmed:
    """Text of one kind without the whitespace that stands between a region and the end of that text."""

    def __init__(self, kind: type[Content] | type[Reasoning], *, meets_region: bool) -> None:
        self._kind = kind
        self._meets_region = meets_region
        self._has_begun = False
        self._held: list[str] = []

    def add(self, text: str) -> list[Event]:
        visible = text.rstrip()
        if not visible:
            self._held.append(text)
            return []
        if self._meets_region and not self._has_begun:
            self._held, visible = [], visible.lstrip()
        event = self._kind("".join([*self._held, visible]))
        self._held, self._meets_region, self._has_begun = [text[len(text.rstrip()) :]], False, True
        return [event]

    def end_region(self) -> None:
        self._meets_region = True

    def finish(self) -> list[Event]:
        held = "".join(self._held)
        return [self._kind(held)] if held and not self._meets_region else []


def _calls_of(value: Any) -> list[tuple[str, str]] | None:
    """Names and arguments of a region's calls, None when one of them is no call.

    Templates give a call, or `{"function": call}`, or a list in either place.
    """
    found: list[tuple[str, str]] = []
    for item in value if isinstance(value, list) else [value]:
        written = item.get("function", item) if isinstance(item, dict) else item
        for candidate in written if isinstance(written, list) else [written]:
            call = _call_of(candidate)
            if call is None:
                return None
            found.append(call)
    return found if found else None


def _call_of(written: Any) -> tuple[str, str] | None:
    if not isinstance(written, dict):
        return None
    name, arguments = written.get("name"), written.get("arguments", written.get("parameters"))
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return None
        name.encode()
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        return name, text if _is_encodable(text) else json.dumps(arguments)
    except MALFORMED:
        return None


def _is_encodable(text: str) -> bool:
    """False for half a surrogate pair: JSON can spell it, an answer cannot carry it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
