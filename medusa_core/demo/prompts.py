"""Prompts for distillation and for measuring: questions, and beginnings of source files."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from medusa_core.demo.chat import ChatMaker, ChatMix
from medusa_core.demo.corpus import Corpus, Document, Entry, draw

__all__ = ["distillation_prompts", "held_out_prompts", "invented", "prefixes", "source_texts"]

Prompt = dict[str, Any]

INVENTED_NAMES = 6000
TRIES_PER_NAME = 4
SOURCE_PREFIXES = 6000
SOURCE_TEXTS = 1500
PREFIX_LINES = (4, 40)
HELD_OUT_QUESTIONS = 40
HELD_OUT_PREFIXES = 20


def distillation_prompts(corpus: Corpus, seed: int) -> dict[str, list[Prompt]]:
    """What the model answers for its heads, by kind: known names, names that do not exist, and source to continue.

    Held-out entries and files are not among them; invented names stand in for what the model does not know.
    """
    chooser = random.Random(seed)
    known = [entry for entry in corpus.entries if not entry.held_out]
    maker = ChatMaker(known, ChatMix(two_turns=0.1), seed)
    names = {entry.name for entry in corpus.entries}
    unknown = invented(known, names, INVENTED_NAMES, chooser)
    trained = [document for document in corpus.documents if not document.held_out]
    return {
        "known": [{"messages": maker.conversation(entry)[:-1]} for entry in known],
        "invented": [{"messages": [{"role": "user", "content": maker.question(entry)}]} for entry in unknown],
        "beginnings": [{"text": text} for text in prefixes(trained, SOURCE_PREFIXES, chooser)],
    }


def source_texts(corpus: Corpus, seed: int) -> Iterator[Prompt]:
    """Pieces of the original source, so that heads see people's code beside the model's own."""
    trained = [document for document in corpus.documents if not document.held_out]
    for text in prefixes(trained, SOURCE_TEXTS, random.Random(seed)):
        yield {"text": text}


def invented(known: Sequence[Entry], taken: set[str], count: int, chooser: random.Random) -> Iterator[Entry]:
    """Up to `count` names that nothing has: the parent of one entry with the last part of another."""
    made: set[str] = set()
    for _ in range(TRIES_PER_NAME * count):  # a small corpus has fewer combinations than are asked for
        host, guest = chooser.choice(known), chooser.choice(known)
        parent, leaf = host.name.rpartition(".")[0], guest.name.rpartition(".")[2]
        name = f"{parent}.{leaf}" if parent else leaf
        if len(made) < count and name not in taken and name not in made and guest.kind != "topic":
            made.add(name)
            yield Entry(name, guest.kind, "", held_out=False)


def prefixes(documents: Sequence[Document], count: int, chooser: random.Random) -> Iterator[str]:
    """Pieces of documents that begin where a definition begins and end with a line; long documents more often."""
    weights = [len(document.text) for document in documents]
    for document in chooser.choices(documents, weights, k=count):
        lines = document.text.splitlines(keepends=True)
        starts = [index for index, line in enumerate(lines) if line.startswith(("def ", "class ", "async def ", "@"))]
        start = chooser.choice([0, *starts])
        piece = "".join(lines[start : start + chooser.randint(*PREFIX_LINES)])
        if piece.strip():
            yield piece


def held_out_prompts(corpus: Corpus) -> list[Prompt]:
    """The prompts that figures are quoted on: held-out names and beginnings of definitions in held-out files."""
    entries = sorted((e for e in corpus.entries if e.held_out), key=lambda entry: draw(f"prompt:{entry.name}"))
    chosen: dict[str, Entry] = {}
    for entry in entries:  # one name per parent, so that one large module cannot dominate
        chosen.setdefault(entry.name.rpartition(".")[0], entry)
    questions = [
        {"messages": [{"role": "user", "content": f"What does {entry.name} do?"}]}
        for entry in list(chosen.values())[:HELD_OUT_QUESTIONS]
    ]
    files = [document for document in corpus.documents if document.held_out and document.path.endswith(".py")]
    texts = list(
        prefixes([f for f in files if f.text.count("\n") > PREFIX_LINES[1]], 4 * HELD_OUT_PREFIXES, random.Random(0))
    )
    continuations = [{"text": text} for text in dict.fromkeys(texts) if text.count("\n") >= PREFIX_LINES[0]]
    return [*questions, *continuations[:HELD_OUT_PREFIXES]]
