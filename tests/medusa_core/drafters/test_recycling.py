import torch

from medusa_core.drafters import DraftState, Recycling
from medusa_core.drafters.recycling import recycling_shape
from medusa_core.generation import GenerationRequest
from medusa_core.memory import NOTHING, SUCCESSORS, Memory, kind_of
from medusa_core.sampling import SamplingParams
from medusa_core.tree import TreeTopology
from tests.cast import CPU, MockBackbone, make_engine, run

SHAPE = TreeTopology.from_paths([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0)])


def propose(memory: Memory, root: int) -> dict[tuple[int, ...], tuple[int, int]]:
    state = DraftState(torch.tensor(root), torch.zeros(1), torch.tensor(9), memory=memory)
    proposal = Recycling(SHAPE, CPU).propose(state)
    values = zip(proposal.tokens.tolist(), proposal.kinds.tolist(), strict=True)
    return dict(zip(SHAPE.paths, values, strict=True))


def test_the_successors_of_a_token_are_followed_by_theirs() -> None:
    memory = Memory(30, CPU)
    assert memory.successors is not None
    known = {3: [10, 20], 10: [11, 12], 12: [13]}
    for token, following in known.items():
        memory.successors.tokens[token, : len(following)] = torch.tensor(following)
        memory.successors.kinds[token, : len(following)] = kind_of("recycling", 5)
    found = propose(memory, 3)

    kind = kind_of("recycling", 5)
    assert found[(0,)] == (10, kind)
    assert found[(1,)] == (20, kind)
    assert found[(0, 0)] == (11, kind)
    assert found[(0, 1)] == (12, kind)
    assert found[(0, 1, 0)] == (13, kind)
    assert found[(1, 0)][1] == NOTHING, "nothing was ever seen behind token 20"


def test_behind_a_token_that_was_never_seen_nothing_is_proposed() -> None:
    found = propose(Memory(30, CPU), 3)

    assert {kind for _, kind in found.values()} == {NOTHING}
    assert all(0 <= token < 30 for token, _ in found.values())


def test_the_shape_holds_the_likeliest_ranks_and_fits_small_vocabularies() -> None:
    shape = recycling_shape(20, 8, 4096)

    assert len(shape.paths) == 20
    assert (0, 0, 0) in shape.paths
    assert max(max(path) for path in shape.paths) < SUCCESSORS
    assert max(max(path) for path in recycling_shape(40, 3, 2).paths) == 1


def test_a_model_without_heads_takes_fewer_steps_for_the_same_answer() -> None:
    backbone = MockBackbone(vocab_size=7)
    # so strong a bias leaves a choice between few tokens
    sampling = SamplingParams(0.0, logit_bias=((2, 40.0), (5, 40.0)))
    plain = run(make_engine(backbone, max_context=256), (1, 2, 3), sampling, max_tokens=150)
    engine = make_engine(backbone, max_context=256, has_lookup=False, recycles=True)
    deltas = list(engine.generate(GenerationRequest((1, 2, 3), sampling, max_tokens=150)))

    assert [token for delta in deltas for token in delta.tokens] == plain
    assert len(deltas) < 140
    assert {source for delta in deltas if delta.step is not None for source in delta.step.accepted} == {"recycling"}
