"""A conversation in the terminal: lines that are asked, and the /commands between them."""

import dataclasses
import difflib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.table import Table

from medusa_core.errors import MedusaError, PromptTooLong
from server.commands.coloring import Coloring, speak
from server.commands.local_model import Choices, stoppable
from server.commands.shared import busy, note, say
from server.commands.spoken import Spoken, Took, told

__all__ = ["Speaker", "Talk", "read_message"]

HELP = {
    "/help": "what can be typed here",
    "/reset": "forget the conversation; the system text stays",
    "/system TEXT": "what the model is told first; without a text: nothing",
    "/temperature X": "0 is greedy; without a number: the model's own",
    "/seed N": "same seed, same answer; without a number: another one each time",
    "/tree on|off": "whether trees are drafted; the text is the same",
    "/compare": "the last question again with speculation the other way: same text? how much slower?",
    "/stats": "what all answers took together",
    "/save FILE": "write the conversation as JSON",
    "/quit": "end; so does Ctrl-D, while Ctrl-C only stops an answer",
}

BLOCK = '"""'
COMMAND = re.compile(r"\s*/(?!/)(?P<name>\S*)\s*(?P<rest>.*?)\s*", re.DOTALL)

N = TypeVar("N", int, float)


class Speaker(Protocol):
    """Who answers."""

    name: str

    def reply(self, messages: Sequence[Mapping[str, Any]], choices: Choices, should_stop: Callable[[], bool]) -> Spoken:
        """The answer to a conversation; raises MedusaError, also while it grows."""
        ...


@dataclass(frozen=True)
class _Turn:
    """The last answer, and what it takes to give it again."""

    messages: Sequence[Mapping[str, Any]]
    choices: Choices
    text: str
    took: Took


def read_message(read: Callable[[str], str]) -> str:
    """One message: a line, lines that end in a backslash and the next, or all between two lines of three quotes.

    read: takes a prompt and gives a line, or several that were pasted; raises EOFError at the end, which also ends a
          message that has begun.
    """
    line = read("> ")
    lines: list[str] = []
    if line.strip() == BLOCK:
        while (more := _more(read)) is not None and more.strip() != BLOCK:
            lines.append(more)
        return "\n".join(lines)
    while line.endswith("\\"):
        lines.append(line[:-1])
        if (more := _more(read)) is None:
            return "\n".join(lines)
        line = more
    return "\n".join([*lines, line])


def _more(read: Callable[[str], str]) -> str | None:
    """The next line of a message that has begun; None where the input ends, which ends the message, too."""
    try:
        return read("| ")
    except EOFError:
        return None


class Talk:
    """One conversation and how it goes on."""

    def __init__(
        self,
        speaker: Speaker,
        out: Console,
        notes: Console,
        read: Callable[[str], str],
        choices: Choices,
        system: str | None,
        coloring: Coloring,
    ) -> None:
        """Answers go to `out`, everything else to `notes`; see read_message for `read`."""
        self._speaker, self._out, self._notes, self._read = speaker, out, notes, read
        self._choices, self._system, self._coloring = choices, system, coloring
        self._said: list[Mapping[str, Any]] = []
        self._last: _Turn | None = None
        self._all: list[Took] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "reset": self._reset,
            "system": self._set_system,
            "temperature": self._set_temperature,
            "seed": self._set_seed,
            "tree": self._set_tree,
            "compare": self._compare,
            "stats": self._stats,
            "save": self._save,
        }

    def run(self) -> None:
        """Until /quit or the end of the input."""
        for words in self._messages():
            command = COMMAND.fullmatch(words)
            # several lines may be code or a path and what follows
            if command is None or ("\n" in words and command["name"] not in self._commands):
                # a line that begins with a slash is written with two
                self._turn(words if "\n" in words else words.removeprefix("/"))
            elif command["name"] in ("quit", "exit"):
                return
            else:
                self._command(command["name"], command["rest"])

    def _messages(self) -> Iterator[str]:
        while True:
            try:
                words = read_message(self._read)
            except EOFError:
                return
            except KeyboardInterrupt:
                self._tell("\nCtrl-D or /quit ends the conversation")
                continue
            if words.strip():
                yield words

    def _tell(self, line: str) -> None:
        note(self._notes, line)

    def _refuse(self, line: str) -> None:
        note(self._notes, line, "red")

    def _command(self, name: str, rest: str) -> None:
        command = self._commands.get(name)
        if command is None:
            near = difflib.get_close_matches(name, [*self._commands, "quit"], n=1)
            hint = f"did you mean /{near[0]}?" if near else "/help tells what there is."
            self._refuse(f"/{name} is no command; {hint} A message that begins with a slash is written with two.")
            return
        try:
            command(rest)
        except ValueError as error:
            self._refuse(str(error))
        except MedusaError as error:
            self._refuse(f"error: {error}")

    def _conversation(self) -> list[Mapping[str, Any]]:
        first = [{"role": "system", "content": self._system}] if self._system is not None else []
        return [*first, *self._said]

    def _turn(self, words: str) -> None:
        self._said.append({"role": "user", "content": words})
        messages = self._conversation()
        # named, so that /compare can ask for the same
        seed = self._choices.seed if self._choices.seed is not None else secrets.randbits(63)
        choices = dataclasses.replace(self._choices, seed=seed)
        try:
            spoken = self._speak(messages, choices)
        except MedusaError as error:
            self._said.pop()
            self._refuse(f"error: {error}")
            if isinstance(error, PromptTooLong) and self._said:
                self._tell("/reset forgets what was said before and makes room")
            return
        took = spoken.took
        self._said.append({"role": "assistant", "content": spoken.text})
        self._last = _Turn(messages, choices, spoken.text, took)
        self._all.append(took)
        self._tell(told(took))

    def _speak(self, messages: Sequence[Mapping[str, Any]], choices: Choices) -> Spoken:
        with stoppable() as is_stopped:
            spoken = self._speaker.reply(messages, choices, is_stopped)
            speak(self._out, spoken, self._coloring)
        return spoken

    def _help(self, _: str) -> None:
        shown = Table.grid(padding=(0, 2, 0, 0))
        shown.add_column(no_wrap=True)
        for command, meaning in HELP.items():
            shown.add_row(command, meaning)
        self._notes.print(shown, highlight=False)
        note(
            self._notes, 'A line that ends in \\ goes on in the next; lines between two of """ are one message.', "none"
        )

    def _reset(self, _: str) -> None:
        self._said, self._last = [], None
        self._tell("a new conversation")

    def _set_system(self, text: str) -> None:
        self._system = text if text else None
        self._tell("the model is told nothing first" if self._system is None else f"the model is told: {text}")

    def _set_temperature(self, word: str) -> None:
        temperature = _number(word, float, "/temperature takes a number from 0 to 2, such as 0.7")
        if temperature is not None and not 0 <= temperature <= 2:
            raise ValueError(f"/temperature is {word}, it must be between 0 and 2")
        self._choices = dataclasses.replace(self._choices, temperature=temperature)
        self._tell(f"temperature: {word if word else 'as the model has it'}")

    def _set_seed(self, word: str) -> None:
        seed = _number(word, int, "/seed takes a whole number, such as 7")
        if seed is not None and not -(2**63) <= seed < 2**64:
            raise ValueError("the seed must fit in 64 bits")
        self._choices = dataclasses.replace(self._choices, seed=seed)
        self._tell(f"seed: {word if word else 'another one each time'}")

    def _set_tree(self, word: str) -> None:
        if word not in ("on", "off"):
            raise ValueError("/tree takes on or off")
        self._choices = dataclasses.replace(self._choices, mode="auto" if word == "on" else "off")
        self._tell("trees are drafted" if word == "on" else "plain decoding: one token a step")

    def _compare(self, _: str) -> None:
        last = self._last
        if last is None:
            raise ValueError("/compare asks the last question again; ask one first")
        mode = "auto" if last.choices.mode == "off" else "off"
        # an answer that somebody stopped is compared as far as it came
        limit = last.took.tokens if last.took.finish_reason is None else last.choices.max_tokens
        choices = dataclasses.replace(last.choices, mode=mode, max_tokens=limit)
        name = "without speculation" if mode == "off" else "with speculation"
        with busy(self._notes, f"the same {name}"), stoppable() as stopped:
            other = self._speaker.reply(last.messages, choices, stopped)
            for _step in other:
                pass
        if other.took.finish_reason is None and other.took.tokens < last.took.tokens:
            self._tell("stopped; nothing was compared")
            return
        self._tell(f"{name}: {told(other.took)}")
        self._tell(f"{_same(last.text, other.text)}; {_pace(last.took, other.took, mode)}")

    def _stats(self, _: str) -> None:
        if not self._all:
            raise ValueError("nothing was answered yet")
        steps, tokens = sum(took.steps for took in self._all), sum(took.step_tokens for took in self._all)
        seconds = sum(took.decode_s for took in self._all)
        sources: Counter[str] = sum((Counter(took.by_source) for took in self._all), Counter())
        say(self._notes, f"{len(self._all)} answers, {sources.total()} tokens")
        if steps > 0 and seconds > 0:
            say(self._notes, f"{tokens / steps:.2f} tokens per step, {tokens / seconds:.1f} tokens/s")
        for source, count in sources.most_common():
            say(self._notes, f"  {source:<10} {count:>6}  {100 * count / sources.total():.0f} %")

    def _save(self, name: str) -> None:
        if not name:
            raise ValueError("/save takes the name of a file")
        file = Path(name).expanduser()
        if file.exists():
            raise ValueError(f"{str(file)!r} exists already; choose another name")
        record = {"model": self._speaker.name, "messages": self._conversation()}
        partial = file.with_name(f"{file.name}.partial")
        try:
            partial.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, file)
        except OSError as error:
            raise ValueError(f"{str(file)!r} cannot be written: {error.strerror}") from error
        self._tell(f"saved in {str(file)!r}")


def _number(word: str, kind: Callable[[str], N], refusal: str) -> N | None:
    if not word:
        return None
    try:
        return kind(word)
    except ValueError as error:
        raise ValueError(refusal) from error


def _same(first: str, second: str) -> str:
    """Whether two texts are the same, or where they part."""
    if first == second:
        return "the same text"
    pairs = zip(first, second, strict=False)
    place = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
    return f"not the same text from character {place + 1} on: {first[place:][:20]!r}, then {second[place:][:20]!r}"


def _pace(before: Took, after: Took, mode: str) -> str:
    """How the answer's second way compares in seconds, the prompt left out, which is known by then."""
    if before.decode_s <= 0 or after.decode_s <= 0:
        return "too short to compare"
    ratio = after.decode_s / before.decode_s if mode == "off" else before.decode_s / after.decode_s
    plain, drafted = (after, before) if mode == "off" else (before, after)
    speed = f"{ratio:.2f} times as long without speculation"
    return f"{speed} ({plain.decode_s:.2f} s, with it {drafted.decode_s:.2f} s)"
