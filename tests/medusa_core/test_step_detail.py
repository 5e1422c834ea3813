from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from medusa_core.config import SpeculationParams
from medusa_core.constraints import Grammar
from medusa_core.drafters import Asked, DrafterSource, DraftState, MedusaDrafter, RootOnly
from medusa_core.generation import Delta, GenerationRequest
from medusa_core.runners import EagerRunner, StepDetail
from medusa_core.runners.cuda_graph import GraphRunner
from medusa_core.sampling import SamplingParams
from medusa_core.tree import TreeTopology
from tests.cast import CPU, GREEDY, make_engine, random_heads
from tests.medusa_core.runners.cast import PROMPT, TapeLauncher, steps_of
from tests.medusa_core.runners.test_cuda_graph import FloatBackbone
from tests.tiny_tokenizers import grammar_vocabulary

SAMPLED = SamplingParams(0.9, seed=3)
# Trees of heads, lookup, recycling and a prediction.
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"sampling": SAMPLED},
    "predicted": {"prediction": (3, 1, 4, 1, 5, 9)},
    "chain": {"speculation": SpeculationParams("chain")},
    "off": {"speculation": SpeculationParams("off")},
    "typical": {"sampling": SAMPLED, "speculation": SpeculationParams(acceptance="typical")},
}


def answer(detail: bool, sampling: SamplingParams = GREEDY, **asked: Any) -> list[Delta]:
    backbone = FloatBackbone(sharpness=1.0)
    heads = random_heads(backbone.lm_head.float())
    engine = make_engine(backbone, heads, tree_nodes=24, recycles=True)
    request = GenerationRequest((*PROMPT, *PROMPT), sampling, max_tokens=40, detail=detail, **asked)
    return [untimed(delta) for delta in engine.generate(request)]


def untimed(delta: Delta) -> Delta:
    step = replace(delta.step, seconds=0.0, phases={}) if delta.step is not None else None
    return replace(delta, prompt=None, step=step)


def check(detail: StepDetail) -> None:
    """A tree with parents before their children, and a path in it from the root down."""
    root, *others = detail.nodes
    assert (root.parent, root.depth, root.source, root.rank, root.probability) == (None, 0, None, None, 1.0)
    for index, node in enumerate(others, start=1):
        assert node.parent is not None and node.parent < index
        parent = detail.nodes[node.parent]
        assert node.depth == parent.depth + 1
        assert 0.0 <= node.probability <= parent.probability * (1 + 1e-6)
        assert (node.rank is not None) == (node.source == "heads")
    assert [detail.nodes[node].parent for node in detail.path] == [0, *detail.path][: len(detail.path)]
    assert [detail.nodes[node].token for node in detail.path] == list(detail.tokens[:-1])


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_the_records_of_an_answer_agree_with_its_tokens_and_its_statistics(asked: dict[str, Any]) -> None:
    first, *others = answer(detail=True, **asked)
    root = first.tokens[-1]

    for delta in others:
        assert delta.step is not None and delta.step.detail is not None
        detail = delta.step.detail
        check(detail)
        assert detail.nodes[0].token == root
        assert detail.tokens[: len(delta.tokens)] == delta.tokens
        assert Counter(node.source for node in detail.nodes[1:]) == Counter(delta.step.drafted)
        assert [detail.nodes[node].source for node in detail.path] == list(delta.step.accepted)
        root = detail.tokens[-1]


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_an_answer_is_the_same_whether_somebody_looks_or_not(asked: dict[str, Any]) -> None:
    watched, alone = answer(detail=True, **asked), answer(detail=False, **asked)

    assert all(delta.step is None or delta.step.detail is None for delta in alone)
    assert [d if d.step is None else replace(d, step=replace(d.step, detail=None)) for d in watched] == alone


@pytest.mark.parametrize("mode", ["tree", "static"])
def test_probabilities_and_ranks_are_those_of_the_heads_that_guessed(mode: str) -> None:
    backbone = FloatBackbone()
    heads = random_heads(backbone.lm_head.float(), num_heads=2)
    static = MedusaDrafter.static(heads, torch.ones(2), TreeTopology.from_paths([(0,), (1,), (1, 0)]))
    best = DrafterSource(heads, torch.ones(2), 8, 6, False, CPU).get(Asked(SpeculationParams("tree"), (), 11, False))
    hidden = torch.randn(16, generator=torch.Generator().manual_seed(1))
    state = DraftState(torch.tensor(3), hidden, torch.tensor(5), is_watched=True)
    tree = (best if mode == "tree" else static).draft(state)
    log_probs = heads(hidden).float().log_softmax(-1)

    assert tree.ranking is not None
    for node in range(1, tree.num_nodes):
        head, parent = log_probs[tree.depth[node] - 1], tree.parent[node]
        expected = tree.ranking.scores[parent] + head[tree.tokens[node]]
        assert float(tree.ranking.scores[node]) == pytest.approx(float(expected), abs=1e-4)
        assert int(tree.ranking.ranks[node]) == int((head > head[tree.tokens[node]]).sum())


def test_nobody_ranks_where_nobody_looks() -> None:
    hidden, root = torch.zeros(16), torch.tensor(3)
    heads = random_heads(FloatBackbone().lm_head.float())
    static = MedusaDrafter.static(heads, torch.ones(3), TreeTopology.chain(3))
    best = DrafterSource(heads, torch.ones(3), 8, 6, False, CPU).get(Asked(SpeculationParams("tree"), (), 11, False))

    for drafter in (static, best, RootOnly(CPU)):
        assert drafter.draft(DraftState(root, hidden, torch.tensor(5))).ranking is None


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_recorded_steps_tell_of_their_trees_what_eager_steps_tell(temperature: float) -> None:
    backbone = FloatBackbone()
    source = DrafterSource(random_heads(backbone.lm_head.float()), torch.ones(3), 16, 6, True, CPU)
    tree = source.get(Asked(SpeculationParams("tree", 8), (), len(PROMPT), False))
    cache, other, launcher = backbone.new_cache(512), backbone.new_cache(512), TapeLauncher()
    asked = [tree, RootOnly(CPU)], 12, SamplingParams(temperature)
    eager = steps_of(EagerRunner(backbone, cache), backbone, cache, *asked, is_watched=True)
    runner = GraphRunner(backbone, other, launcher)
    replayed = steps_of(runner, backbone, other, *asked, is_watched=True)
    unwatched = steps_of(runner, backbone, other, *asked)

    assert replayed == eager
    assert all(step.detail is not None for step in replayed)
    assert unwatched == [replace(step, detail=None) for step in eager]
    assert launcher.log.count("capture") == 4


def test_branches_that_a_grammar_forbids_are_not_shown() -> None:
    backbone = FloatBackbone()
    vocabulary, grammar = grammar_vocabulary(backbone.vocab_size, 2), Grammar.regex("[ab](,[ab]){60,90}").text
    source = DrafterSource(random_heads(backbone.lm_head.float()), torch.ones(3), 16, 6, True, CPU)
    tree = source.get(Asked(SpeculationParams("tree", 12), (), len(PROMPT), has_grammar=True))
    cache, other = backbone.new_cache(512), backbone.new_cache(512)
    asked = [tree], 8
    eager = steps_of(
        EagerRunner(backbone, cache), backbone, cache, *asked, constraint=vocabulary.compile(grammar), is_watched=True
    )
    replayed = steps_of(
        GraphRunner(backbone, other, TapeLauncher()),
        backbone,
        other,
        *asked,
        constraint=vocabulary.compile(grammar),
        is_watched=True,
    )

    assert replayed == eager
    for step in eager:
        assert step.detail is not None
        check(step.detail)
        assert len(step.detail.nodes) - 1 == sum(step.drafted.values())
