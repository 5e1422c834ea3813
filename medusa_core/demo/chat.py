"""Conversations about the standard library, made from the corpus's entries."""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from medusa_core.demo.corpus import Entry

__all__ = ["ChatMaker", "ChatMix", "exchange", "repeats"]

Message = dict[str, str]

NAME_QUESTIONS = (
    "What does {name} do?", "What does {name} do?", "What does `{name}` do?", "What is {name}?", "What is {name} for?",
    "Explain {name}.", "Explain `{name}`", "Tell me about {name}.", "How do I use {name}?", "Describe {name}.",
    "Document {name}.", "Can you explain {name}?", "What's {name}?", "help({name})", "{name}", "{name}?",
    "what does {name} do", "What does the {kind} {name} do?", "What does Python's {name} do?", "Show me {name}.",
    "Please explain what {name} does.", "How does {name} work?", "I don't understand {name}.",
)  # fmt: skip
CALL_QUESTIONS = ("What does {name}() do?", "What does `{name}()` do?", "How do I call {name}()?", "Explain {name}().")
MODULE_QUESTIONS = (
    "What is the {name} module?", "What does the {name} module do?", "What is the module {name} for?",
    "What does `import {name}` give me?", "When would I use the {name} module?",
)  # fmt: skip
TOPIC_QUESTIONS = (
    "Explain {name} in Python.", "What does Python's documentation say about {name}?",
    "Tell me about the topic {name}.", "help('{name}')", "What is {name} in Python?", "Python topic: {name}",
)  # fmt: skip
REVERSE_QUESTIONS = ("Which name has this documentation? {summary}", "What is this about? {summary}")
LISTING_QUESTIONS = ("What is in {name}?", "List some members of {name}.", "What does {name} offer?")
SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a Python expert.", "You explain Python's standard library.",
    "Answer briefly.", "You are a helpful coding assistant.", "You answer questions about Python.",
)  # fmt: skip

GREETINGS = ("Hi", "Hello", "Hello!", "Hey", "hi", "Good morning", "Hi there!")
GREETING_ANSWER = (
    "Hello! I am a small demo model that learnt Python's standard library. "
    "Ask me about a module, a class or a function, for example: What does textwrap.dedent do?"
)
IDENTITY_QUESTIONS = ("Who are you?", "What are you?", "What can you do?", "What can I ask you?", "Help")
IDENTITY_ANSWER = (
    "I am the demo model of Medusa Server: a few million parameters trained on Python's standard library. "
    "I can say what its modules, classes and functions do, and continue Python source. I know nothing else."
)

FAMILIAR = frozenset((
    "textwrap", "json", "os", "re", "itertools", "functools", "collections", "math", "random", "datetime", "pathlib",
    "string", "sys", "time", "shutil", "statistics", "bisect", "heapq", "copy", "csv", "subprocess", "threading",
    "argparse", "typing", "dataclasses", "contextlib", "enum", "operator", "glob", "fnmatch", "tempfile", "base64",
    "pickle", "secrets", "uuid", "zipfile", "inspect", "traceback", "difflib", "calendar", "fractions", "struct",
    "str", "int", "float", "list", "dict", "tuple", "set", "bytes", "range", "object", "type",
))  # fmt: skip
"""Modules and built-in types that people ask about more often than about the rest."""
FAMILIAR_WEIGHT = 3


@dataclass(frozen=True)
class ChatMix:
    """How often a conversation takes each form; the rest is one question and one answer."""

    system: float = 0.25
    two_turns: float = 0.15
    reverse: float = 0.04
    listing: float = 0.02
    small_talk: float = 0.004


class ChatMaker:
    """Makes conversations from the entries it is given; the same seed gives the same conversations."""

    def __init__(self, entries: list[Entry], mix: ChatMix, seed: int) -> None:
        self.entries = entries
        self._mix = mix
        self._random = random.Random(seed)
        self._members: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            self._members[entry.name.rpartition(".")[0]].append(entry)
        self._parents = [parent for parent, members in self._members.items() if parent and len(members) >= 3]

    def epoch(self) -> Iterator[list[Message]]:
        """Every entry once (familiar ones more often), in random order."""
        order = [entry for entry in self.entries for _ in range(repeats(entry))]
        self._random.shuffle(order)
        for entry in order:
            yield self.conversation(entry)

    def conversation(self, entry: Entry) -> list[Message]:
        """One conversation that asks about the entry."""
        draw, mix = self._random.random, self._mix
        messages: list[Message] = []
        if draw() < mix.system:
            messages.append({"role": "system", "content": self._random.choice(SYSTEM_PROMPTS)})
        if draw() < mix.small_talk:
            return messages + self._small_talk()
        if self._parents and draw() < mix.listing:
            return messages + self._listing(self._random.choice(self._parents))
        if entry.kind != "topic" and draw() < mix.reverse:
            return messages + self._reverse(entry)
        if draw() < mix.two_turns:
            siblings = self._members[entry.name.rpartition(".")[0]]
            messages += self._exchange(self._random.choice(siblings))
        return messages + self._exchange(entry)

    def question(self, entry: Entry) -> str:
        """One way of asking about the entry."""
        forms: tuple[str, ...]
        if entry.kind == "topic":
            forms = TOPIC_QUESTIONS
        elif entry.kind == "module":
            forms = MODULE_QUESTIONS + NAME_QUESTIONS
        elif entry.kind == "property":
            forms = NAME_QUESTIONS
        else:
            forms = NAME_QUESTIONS + CALL_QUESTIONS
        return self._random.choice(forms).format(name=entry.name, kind=entry.kind)

    def _exchange(self, entry: Entry) -> list[Message]:
        return exchange(self.question(entry), entry.answer)

    def _reverse(self, entry: Entry) -> list[Message]:
        summary = entry.answer.split("```\n\n", 1)[-1].split("\n\n")[0]
        return exchange(self._random.choice(REVERSE_QUESTIONS).format(summary=summary), f"That is `{entry.name}`.")

    def _listing(self, parent: str) -> list[Message]:
        lines = [f"- `{entry.name}`" for entry in self._members[parent][:8]]
        return exchange(self._random.choice(LISTING_QUESTIONS).format(name=parent), "\n".join(lines))

    def _small_talk(self) -> list[Message]:
        if self._random.random() < 0.5:
            return exchange(self._random.choice(GREETINGS), GREETING_ANSWER)
        return exchange(self._random.choice(IDENTITY_QUESTIONS), IDENTITY_ANSWER)


def exchange(question: str, answer: str) -> list[Message]:
    """A user message and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def repeats(entry: Entry) -> int:
    """How often an epoch asks about the entry."""
    is_familiar = entry.name.split(".")[0] in FAMILIAR and entry.kind != "topic"
    return FAMILIAR_WEIGHT if is_familiar else 1
