import torch

from medusa_core.config import SpeculationParams
from medusa_core.drafters import Asked, Drafter, DrafterSource, DraftState, Grammatical, forced_span
from medusa_core.generation import GenerationRequest
from medusa_core.heads import DraftHeads
from medusa_core.memory import Memory
from medusa_core.sampling import SamplingParams
from medusa_core.tree import SOURCES, CandidateTree
from tests.cast import CPU, GREEDY, MockBackbone, make_engine, random_heads, run

HEADS = random_heads(torch.randn(23, 16, generator=torch.Generator().manual_seed(0)), 3)
HIDDEN = torch.randn(16, generator=torch.Generator().manual_seed(1))


def merged(
    num_nodes: int = 16, heads: DraftHeads | None = HEADS, prediction: tuple[int, ...] = (), has_grammar: bool = False
) -> Drafter:
    source = DrafterSource(heads, torch.ones(3), num_nodes, 8, True, CPU)
    return source.get(Asked(SpeculationParams(), prediction, 3, has_grammar))


def state(sequence: list[int], grammar: Grammatical | None = None) -> DraftState:
    history = torch.tensor(sequence + [0] * 12)
    past, memory = torch.tensor(len(sequence) - 1), Memory(23, CPU)
    return DraftState(torch.tensor(sequence[-1]), HIDDEN, past, None, history, grammar, memory=memory)


def sources_of(tree: CandidateTree) -> set[str]:
    return {SOURCES[source] for source in tree.source[tree.used][1:].tolist()}


def deepest_path(tree: CandidateTree) -> list[int]:
    deepest = tree.ancestors[int(tree.depth.masked_fill(~tree.used, 0).argmax())]
    path: list[int] = tree.tokens[deepest].tolist()
    return path


def test_a_tree_holds_guesses_of_the_heads_and_what_was_looked_up_deeper_than_they_reach() -> None:
    drafter = merged()
    tree = drafter.draft(state([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4]))

    assert sources_of(tree) == {"heads", "lookup"}
    assert deepest_path(tree) == [4, 5, 6, 7, 8, 9, 10, 1, 2]
    assert tree.max_depth == drafter.max_depth == 8


def test_without_a_match_all_nodes_are_the_heads() -> None:
    tree = merged().draft(state([1, 2, 3]))

    assert bool(tree.used.all())
    assert tree.source.tolist() == [0] * 16


def test_a_small_tree_is_no_deeper_than_its_nodes() -> None:
    drafter = merged(num_nodes=4)

    assert drafter.max_depth == 3
    assert drafter.draft(state([1, 2, 1, 2])).num_nodes == 4


def test_lookup_prediction_and_heads_share_one_tree() -> None:
    sequence = [1, 2, 3, 4, 5, 6, 1, 2]
    tree = merged(prediction=(4, 5, 6, 1, 2, 9, 8, 7)).draft(state(sequence))

    assert sources_of(tree) == {"heads", "lookup", "prediction"}
    assert deepest_path(tree)[0] == 2
    depth_one = tree.tokens[tree.used & (tree.depth == 1)].tolist()
    assert {3, 9} <= set(depth_one)  # what followed 1 2 in the sequence, and in the prediction


def test_only_what_the_grammar_allows_next_is_drafted_and_what_it_forces_is_drafted_first() -> None:
    allowed = torch.zeros(23, dtype=torch.bool)
    allowed[[11]] = True
    grammar = Grammatical(allowed, forced_span([11, 12, 13], 8, CPU))
    tree = merged(has_grammar=True).draft(state([1, 2, 3, 1, 2, 3], grammar))

    assert tree.tokens[tree.used & (tree.depth == 1)].tolist() == [11]
    forced = [int(node) for node in tree.used.nonzero()[:, 0] if SOURCES[int(tree.source[node])] == "grammar"]
    assert tree.tokens[forced].tolist() == [11, 12, 13]


def test_without_heads_predictions_and_grammars_still_draft() -> None:
    drafter = merged(heads=None, prediction=(4, 5, 6, 1, 2, 9, 8, 7))
    tree = drafter.draft(state([1, 2, 3, 4, 5, 6, 1, 2]))

    assert sources_of(tree) == {"lookup", "prediction"}
    assert tree.guesses is None
    assert not bool(tree.used.all())


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
