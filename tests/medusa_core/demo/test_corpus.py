import sysconfig
from functools import cache
from pathlib import Path

import pytest

from medusa_core.demo.corpus import Corpus, answer_for, build_corpus, draw, opening_paragraphs, without_lines
from medusa_core.demo.library import DocumentedName


@cache
def corpus() -> Corpus:
    return build_corpus()


def documented(doc: str, kind: str = "function", signature: str = "(text)") -> DocumentedName:
    return DocumentedName("box.open", kind, signature, doc, "box.py", (1, 1), is_public=True)


def test_textwrap_is_never_held_out_and_answered_with_its_documentation() -> None:
    entry = next(entry for entry in corpus().entries if entry.name == "textwrap.dedent")

    assert not entry.held_out
    assert entry.answer.startswith("```python\ntextwrap.dedent(text)\n```\n\nRemove any common leading whitespace")
    assert not next(document for document in corpus().documents if document.path == "textwrap.py").held_out


def test_a_few_percent_are_held_out() -> None:
    held_out = sum(entry.held_out for entry in corpus().entries)

    assert 0.02 < held_out / len(corpus().entries) < 0.15
    assert 5 < sum(document.held_out for document in corpus().documents) < 60


def test_no_held_out_docstring_is_in_the_text_that_is_trained_on() -> None:
    trained = " ".join(" ".join(document.text.split()) for document in corpus().documents if not document.held_out)
    answers = " ".join(" ".join(entry.answer.split()) for entry in corpus().entries if not entry.held_out)
    leaked = []
    for entry in corpus().entries:
        summary = " ".join(entry.answer.rpartition("```\n\n")[2].split("\n\n")[0].split())
        # A short summary ("Return the value.") can stand elsewhere by coincidence.
        is_telling = entry.held_out and entry.kind != "topic" and len(summary) > 60
        if is_telling and (summary in trained or summary in answers):
            leaked.append(entry.name)

    assert leaked == []


def test_files_that_are_trained_on_are_still_python_where_docstrings_were_cut() -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    cut = [d for d in corpus().documents if not d.held_out and d.path.endswith(".py")]
    changed = [d for d in cut if d.text != (library / d.path).read_text(encoding="utf-8", errors="replace")]

    assert 10 < len(changed) < len(cut) / 2


def test_a_corpus_survives_saving(tmp_path: Path) -> None:
    corpus().save(tmp_path / "corpus.json")

    assert Corpus.load(tmp_path / "corpus.json") == corpus()


def test_the_split_is_the_same_on_every_machine() -> None:
    # SHA-256 of the key, as a percentage: nothing of it depends on the process, the order or Python's own hash.
    assert draw("name:textwrap.dedent") == pytest.approx(92.681621)


def test_answers_are_bounded() -> None:
    assert max(len(entry.answer) for entry in corpus().entries) < 900


def test_prose_is_unwrapped_and_code_is_not() -> None:
    doc = "This first sentence is long enough to be wrapped,\nand here it ends.\n\n>>> box.open()\nTrue"

    assert opening_paragraphs(doc) == (
        "This first sentence is long enough to be wrapped, and here it ends.\n\n>>> box.open()\nTrue"
    )


def test_a_paragraph_that_only_announces_the_next_is_left_out() -> None:
    assert opening_paragraphs("Open it.\n\nFor example:\n\n" + "x" * 500) == "Open it."


def test_a_first_paragraph_that_is_too_long_ends_after_a_sentence() -> None:
    opening = opening_paragraphs("Open the box. " * 60)

    assert opening is not None
    assert opening.endswith("Open the box.")
    assert len(opening) <= 420


@pytest.mark.parametrize("doc", ["+", "x" * 500])
def test_nothing_worth_saying_is_no_answer(doc: str) -> None:
    assert answer_for(documented(doc)) is None


def test_modules_are_imported_and_long_signatures_shortened() -> None:
    assert str(answer_for(documented("A box.", kind="module"))).startswith("```python\nimport box.open\n```")
    assert "box.open(...)" in str(answer_for(documented("A box.", signature="(" + "a" * 200 + ")")))


def test_lines_are_cut_by_their_numbers() -> None:
    assert without_lines("a\nb\nc\nd", [(2, 3)]) == "a\nd"
