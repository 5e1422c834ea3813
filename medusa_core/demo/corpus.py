"""The demo corpus: source text and documented names, split once and for all into trained and held out.

A name is held out by the SHA-256 of its qualified name, a file by that of its path. Whatever repeats the documentation
of a held-out name (a twin in another module, an alias, a subclass) is held out with it. Held-out files are never
trained on; in the files that are, the docstrings of held-out names are cut out of the text.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from medusa_core.demo.library import (
    DocumentedName,
    SourceFile,
    compiled_names,
    names_in_source,
    reexports,
    source_files,
    topics,
)

__all__ = ["Corpus", "Document", "Entry", "answer_for", "build_corpus", "draw", "opening_paragraphs", "without_lines"]

HELD_OUT_NAMES_PERCENT = 4
HELD_OUT_FILES_PERCENT = 5
LARGEST_HELD_OUT_FILE = 64_000
"""Characters; above this stand a few modules (decimal, typing, ...) that one would rather ask the model about."""
NEVER_HELD_OUT = ("textwrap",)
"""The README's example must be known to the model."""

ANSWER_CHARACTERS = 420
SIGNATURE_CHARACTERS = 150


@dataclass(frozen=True)
class Document:
    """Plain text for completion training: a source file without held-out docstrings, or a language topic."""

    path: str
    text: str
    held_out: bool


@dataclass(frozen=True)
class Entry:
    """One thing the demo model can be asked about; `answer` is what it should say."""

    name: str
    kind: str
    answer: str
    held_out: bool


@dataclass(frozen=True)
class Corpus:
    """Everything the demo model is made from."""

    documents: tuple[Document, ...]
    entries: tuple[Entry, ...]

    def save(self, path: Path) -> None:
        """Write as one JSON file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Corpus":
        """Read what `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        documents = tuple(Document(**item) for item in content["documents"])
        return cls(documents, tuple(Entry(**item) for item in content["entries"]))


def build_corpus() -> Corpus:
    """The corpus of the running interpreter; the same interpreter gives the same corpus."""
    files = list(source_files())
    exported = reexports(files)
    names = [name for file in files for name in names_in_source(file, exported)]
    names += compiled_names({name.name for name in names if name.is_public})
    held_out_paths = {file.path for file in files if _draws_file(file)}
    held_out_docs = _held_out_docs(names, held_out_paths)

    documents = []
    for file in files:
        held_out = file.path in held_out_paths
        hidden = [name for name in names if name.path == file.path and _fingerprint(name.doc) in held_out_docs]
        text = file.text if held_out else without_lines(file.text, [name.lines for name in hidden if name.lines])
        documents.append(Document(file.path, text, held_out))
    entries: dict[str, Entry] = {}
    for name in names:
        answer = answer_for(name)
        if name.is_public and answer is not None and name.name not in entries:
            entries[name.name] = Entry(name.name, name.kind, answer, _fingerprint(name.doc) in held_out_docs)
    for topic, text in topics().items():
        held_out = draw(f"topic:{topic}") < HELD_OUT_NAMES_PERCENT
        documents.append(Document(f"topic:{topic}", text, held_out))
        opening = opening_paragraphs(re.sub(r"^[^\n]*\n\*+\n+", "", text))
        if opening is not None:
            entries.setdefault(f"topic:{topic}", Entry(topic, "topic", opening, held_out))
    return Corpus(tuple(documents), tuple(entries.values()))


def answer_for(name: DocumentedName) -> str | None:
    """Signature and the documentation's first paragraphs, or None when there is nothing to say."""
    text = opening_paragraphs(name.doc)
    if text is None:
        return None
    if name.kind == "module":
        shown = f"import {name.name}"
    elif len(name.signature) <= SIGNATURE_CHARACTERS:
        shown = f"{name.name}{name.signature}"
    else:
        shown = f"{name.name}(...)"
    return f"```python\n{shown}\n```\n\n{text}"


def opening_paragraphs(doc: str) -> str | None:
    """The first paragraphs that fit an answer, prose unwrapped; a too long first one is cut after a sentence."""
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", doc.strip().expandtabs()):
        text = _unwrap(paragraph)
        if kept and sum(map(len, kept)) + len(text) > ANSWER_CHARACTERS:
            break
        kept.append(text)
    while len(kept) > 1 and (kept[-1].rstrip().endswith(":") or kept[-1].startswith((" ", "---", "==="))):
        kept.pop()
    if not kept or not re.search(r"[A-Za-z]{2}", kept[0]):
        return None
    if len(kept[0]) > ANSWER_CHARACTERS:
        sentences = [match.end() for match in re.finditer(r"\.(?=\s)", kept[0][:ANSWER_CHARACTERS])]
        if not sentences:
            return None
        kept = [kept[0][: sentences[-1]]]
    return "\n\n".join(kept).strip()


def _unwrap(paragraph: str) -> str:
    """Join the lines of prose; keep the lines of lists, tables and code."""
    lines = paragraph.split("\n")
    is_prose = all(re.match(r"[^\s>*+|=-]", line) for line in lines) and all(len(line) > 40 for line in lines[:-1])
    return " ".join(line.strip() for line in lines) if is_prose else "\n".join(line.rstrip() for line in lines)


def without_lines(text: str, spans: list[tuple[int, int]]) -> str:
    """The text without the given line spans (from 1, ends included)."""
    dropped = {number for first, last in spans for number in range(first, last + 1)}
    lines = text.split("\n")
    return "\n".join(line for number, line in enumerate(lines, start=1) if number not in dropped)


def _held_out_docs(names: list[DocumentedName], held_out_paths: set[str]) -> set[str]:
    """Fingerprints of all documentation that must never be trained on."""
    drawn = {
        _fingerprint(name.doc)
        for name in names
        if name.path in held_out_paths or (name.is_public and draw(f"name:{name.name}") < HELD_OUT_NAMES_PERCENT)
    }
    kept = {_fingerprint(name.doc) for name in names if name.name.split(".")[0] in NEVER_HELD_OUT}
    return drawn - kept


def _draws_file(file: SourceFile) -> bool:
    if file.module in NEVER_HELD_OUT or len(file.text) > LARGEST_HELD_OUT_FILE:
        return False
    return draw(f"file:{file.path}") < HELD_OUT_FILES_PERCENT


def _fingerprint(doc: str) -> str:
    """What two docstrings share when they begin with the same paragraph."""
    return " ".join(re.split(r"\n\s*\n", doc.strip())[0].lower().split())


def draw(key: str) -> float:
    """A stable percentage in [0, 100) for a key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 * 100
