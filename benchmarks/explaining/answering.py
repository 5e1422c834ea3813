"""One answer of the demo model, step by step: what docs/how-it-works.md draws."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from medusa_core import Delta, Engine, EngineConfig, GenerationRequest, SamplingParams, SpeculationParams
from medusa_core.evaluation.machine import machine
from medusa_core.text import TextCodec

__all__ = ["Answer", "Node", "Step", "ask", "read", "written"]

QUESTION = "What does json.dumps do?"
NODES, MAX_TOKENS = 8, 150
# The least of so many runs is the time of a step: others use the machine as well.
RUNS = 80


@dataclass(frozen=True)
class Node:
    """A place in a tree; `parent` is one of the list, and None for the root. source: None for the root."""

    text: str
    parent: int | None
    depth: int
    source: str | None
    probability: float


@dataclass(frozen=True)
class Step:
    """A forward pass and the tokens it decided, the last of which is the bonus.

    sources: who proposed each token; None is the model itself.
    tree:    root first, parents before their children; path holds the places that were accepted.
    """

    tokens: tuple[str, ...]
    sources: tuple[str | None, ...]
    tree: tuple[Node, ...]
    path: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Answer:
    """The same answer with a tree at every step and plainly, a token a step. first: the token the prompt decides."""

    question: str
    first: str
    by_tree: tuple[Step, ...]
    plainly: tuple[Step, ...]
    machine: dict[str, Any]

    @property
    def shown(self) -> int:
        """Place of the step to look at: of those to which two sources proposed, the first that accepted most."""
        mixed = [place for place, step in enumerate(self.by_tree) if len({node.source for node in step.tree[1:]}) > 1]
        return max(mixed, key=lambda place: len(self.by_tree[place].path))


def ask(runs: int = RUNS) -> Answer:
    """Let the demo model answer, by turns with trees and plainly; without runs nothing is timed, and takes 0 s."""
    codec = TextCodec.load("demo")
    prompt = tuple(codec.encode_chat([{"role": "user", "content": QUESTION}]))

    def spelling(token: int) -> str:
        return codec.token_bytes(token).decode(errors="replace")

    def run(engine: Engine, speculation: SpeculationParams, detail: bool) -> list[Delta]:
        engine.forget()
        greedy = SamplingParams(temperature=0.0)
        return list(engine.generate(GenerationRequest(prompt, greedy, speculation, MAX_TOKENS, detail=detail)))

    ways = (SpeculationParams("tree", NODES), SpeculationParams("off"))
    # int8 copies of the heads are taken where the clock says so, and their estimates differ a little
    config = EngineConfig("demo", tree_nodes=NODES, num_threads=1, device="cpu", int8_heads="off")
    same_anywhere = Engine.load(config)
    told = [run(same_anywhere, way, detail=True) for way in ways]
    timed: list[list[list[Delta]]] = []
    if runs > 0:
        # timed as most requests are answered: with what is fastest here, and without telling
        fastest_here = Engine.load(replace(config, int8_heads="auto"))
        timed = [[run(fastest_here, way, detail=False) for way in ways] for _ in range(runs)]
    for way, deltas in enumerate(told):
        steps = [delta.tokens for delta in deltas]
        assert all([one.tokens for one in answers[way]] == steps for answers in timed), (
            "int8 heads lead to other steps here"
        )
    by_tree, plainly = (
        tuple(
            _step(delta, min((_seconds(answers[way][place]) for answers in timed), default=0.0), spelling)
            for place, delta in enumerate(told[way])
            if delta.step is not None
        )
        for way in range(len(ways))
    )
    return Answer(QUESTION, spelling(told[0][0].tokens[0]), by_tree, plainly, machine())


def _seconds(delta: Delta) -> float:
    return delta.step.seconds if delta.step is not None else 0.0


def _step(delta: Delta, seconds: float, spelling: Callable[[int], str]) -> Step:
    """A step as it is drawn: its tokens are those of the answer, without what an end or a limit has cut."""
    assert delta.step is not None and delta.step.detail is not None, "the step was not asked to tell of itself"
    detail = delta.step.detail
    nodes = tuple(
        Node(spelling(one.token), one.parent, one.depth, one.source, float(f"{one.probability:.3g}"))
        for one in detail.nodes
    )
    sources = (*(nodes[place].source for place in detail.path), None)[: len(delta.tokens)]
    return Step(tuple(map(spelling, delta.tokens)), sources, nodes, tuple(detail.path), round(seconds, 6))


def written(answer: Answer) -> str:
    """As a file holds it, a step a line."""
    lines = [f' "{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in _head(answer)]
    for name, steps in (("by_tree", answer.by_tree), ("plainly", answer.plainly)):
        rows = ",\n".join(f"  {json.dumps(asdict(step), ensure_ascii=False)}" for step in steps)
        lines.append(f' "{name}": [\n{rows}\n ]')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _head(answer: Answer) -> Iterator[tuple[str, Any]]:
    yield "question", answer.question
    yield "first", answer.first
    yield "machine", answer.machine


def read(text: str) -> Answer:
    """What a file holds, as an answer."""
    values = json.loads(text)
    by_tree, plainly = (tuple(map(_read_step, values[name])) for name in ("by_tree", "plainly"))
    return Answer(values["question"], values["first"], by_tree, plainly, values["machine"])


def _read_step(values: dict[str, Any]) -> Step:
    tree = tuple(Node(**node) for node in values["tree"])
    return Step(tuple(values["tokens"]), tuple(values["sources"]), tree, tuple(values["path"]), values["seconds"])
