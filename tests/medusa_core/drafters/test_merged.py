import torch

from medusa_core.drafters import DraftState, MergedDrafter
from medusa_core.engine import GenerationRequest
from medusa_core.sampling import SamplingParams
from medusa_core.tree import SOURCES
from tests.cast import GREEDY, MockBackbone, make_engine, random_heads, run

HEADS = random_heads(torch.randn(23, 16, generator=torch.Generator().manual_seed(0)), 3)
HIDDEN = torch.randn(16, generator=torch.Generator().manual_seed(1))


def state(sequence: list[int]) -> DraftState:
    history = torch.tensor(sequence + [0] * 12)
    return DraftState(torch.tensor(sequence[-1]), HIDDEN, torch.tensor(len(sequence) - 1), history=history)


def test_a_tree_holds_guesses_of_the_heads_and_what_was_looked_up_deeper_than_they_reach() -> None:
    drafter = MergedDrafter.best_nodes(HEADS, torch.ones(3), 16, 8)
    tree = drafter.draft(state([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4]))

    sources = {SOURCES[source] for source in tree.source[tree.used][1:].tolist()}
    deepest = tree.ancestors[int(tree.depth.masked_fill(~tree.used, 0).argmax())]
    assert sources == {"heads", "lookup"}
    assert tree.tokens[deepest].tolist() == [4, 5, 6, 7, 8, 9, 10, 1, 2]
    assert tree.max_depth == drafter.max_depth == 8


def test_without_a_match_all_nodes_are_the_heads() -> None:
    tree = MergedDrafter.best_nodes(HEADS, torch.ones(3), 16, 8).draft(state([1, 2, 3]))

    assert bool(tree.used.all())
    assert tree.source.tolist() == [0] * 16


def test_a_small_tree_is_no_deeper_than_its_nodes() -> None:
    drafter = MergedDrafter.best_nodes(HEADS, torch.ones(3), 4, 8)

    assert drafter.max_depth == 3
    assert drafter.draft(state([1, 2, 1, 2])).num_nodes == 4


def test_a_sequence_that_repeats_is_believed_and_credited_to_lookup() -> None:
    backbone = MockBackbone()
    engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=16, max_context=256)
    # a bias this strong makes the model say one token for ever
    forced = SamplingParams(0.0, logit_bias=((6, 100.0),))
    found = list(engine.generate(GenerationRequest((3, 1, 4), forced, max_tokens=100)))

    steps = [delta.step for delta in found if delta.step is not None]
    assert len(steps) < 25
    assert {source for step in steps for source in step.accepted} >= {"lookup"}
    assert run(make_engine(backbone, max_context=256), (3, 1, 4), forced, max_tokens=100) == [6] * 100


def test_lookup_never_changes_a_sequence() -> None:
    backbone = MockBackbone(vocab_size=5)  # so few tokens that there is always a match
    for sampling in (GREEDY, SamplingParams(1.0, seed=4)):
        plain = run(make_engine(backbone), (3, 1, 4), sampling, max_tokens=80)
        tree = run(make_engine(backbone, random_heads(backbone.lm_head), 12), (3, 1, 4), sampling, max_tokens=80)

        assert tree == plain
