"""The pictures of docs/how-it-works.md are what the demo model does, and what the code draws of it."""

import re
import statistics
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.explaining import answering
from benchmarks.explaining.answering import Answer, Node, Step
from benchmarks.explaining.drawing import ancestors, pictures, rows_of

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "pictures"
KEPT = (FOLDER / "answer.json").read_text(encoding="utf-8")
# a fork whose first branch goes on: b and c behind a, d behind b
FORK = (
    Node("a", None, 0, None, 1.0),
    Node("b", 0, 1, "heads", 0.5),
    Node("c", 0, 1, "lookup", 0.25),
    Node("d", 1, 2, "heads", 0.1),
)


@pytest.fixture(scope="module")
def answer() -> Answer:
    return answering.read(KEPT)


def untimed(steps: tuple[Step, ...]) -> list[Step]:
    return [
        replace(step, seconds=0.0, tree=tuple(replace(node, probability=0.0) for node in step.tree)) for step in steps
    ]


def test_the_demo_model_takes_the_steps_that_are_drawn(answer: Answer) -> None:
    found = answering.ask(runs=0)

    assert (found.question, found.first) == (answer.question, answer.first)
    assert untimed(found.by_tree) == untimed(answer.by_tree)
    assert untimed(found.plainly) == untimed(answer.plainly)


def test_the_pictures_are_what_the_code_draws(answer: Answer) -> None:
    drawn = pictures(answer)

    assert {path.name for path in FOLDER.glob("*.svg")} == drawn.keys()
    for name, picture in drawn.items():
        ElementTree.fromstring(picture)
        assert (FOLDER / name).read_text(encoding="utf-8") == picture, f"{name}: python benchmarks/explain.py"


def test_what_is_kept_is_read_as_it_was_written(answer: Answer) -> None:
    assert answering.written(answer) == KEPT


def test_both_ways_write_the_same_tokens(answer: Answer) -> None:
    by_tree, plainly = (
        [token for step in steps for token in step.tokens] for steps in (answer.by_tree, answer.plainly)
    )

    assert by_tree == plainly


def test_a_node_sees_its_own_way_from_the_root() -> None:
    assert [ancestors(FORK, place) for place in range(4)] == [{0}, {0, 1}, {0, 2}, {0, 1, 3}]


def test_branches_stand_below_each_other_and_a_first_child_beside_its_parent() -> None:
    assert rows_of(FORK) == [0, 0, 1, 0]


def test_the_page_shows_every_picture_and_states_their_figures(answer: Answer) -> None:
    page = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    step, steps, tokens = answer.by_tree[answer.shown], len(answer.by_tree), len(answer.plainly)

    assert set(re.findall(r"\]\(pictures/(\w+\.svg)\)", page)) == {path.name for path in FOLDER.glob("*.svg")}
    assert f"{len(step.tree) - 1} guesses" in page
    assert f"{len(step.tokens)} tokens" in page
    assert f"{steps} steps" in page
    assert f"{tokens} tokens" in page
    assert f"{tokens / steps:.1f} tokens per step" in page
    plain, by_tree = (statistics.median(step.seconds for step in steps) for steps in (answer.plainly, answer.by_tree))
    assert f"{by_tree / plain:.1f} times as long" in page
