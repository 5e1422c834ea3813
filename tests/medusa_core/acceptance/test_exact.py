import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_core.acceptance import Exact
from medusa_core.node_choice import BestNodes
from medusa_core.sampling import Sampler, SamplingParams
from medusa_core.tree import CandidateTree, TreeTopology
from tests.cast import CPU

PAST = torch.tensor(10)
VOCAB = 12


def prefer(tokens: dict[int, int], nodes: int) -> torch.Tensor:
    """Logits that raise one token per node."""
    logits = torch.zeros(nodes, VOCAB)
    for node, token in tokens.items():
        logits[node, token] = 10.0
    return logits


def greedy() -> Exact:
    return Exact(Sampler.of_request(SamplingParams(temperature=0.0, seed=0), CPU))


def test_a_short_branch_cannot_borrow_a_token_from_a_long_one() -> None:
    topology = TreeTopology.from_paths([(0,), (1,), (0, 0), (0, 0, 0)])
    tree = CandidateTree.from_topology(topology, torch.tensor([5, 7, 8, 9, 10]))
    logits = prefer({0: 8, 2: 0}, 5)  # after the root: 8; after node 2: token id 0

    accepted = greedy().accept(tree, logits, PAST)

    count = int(accepted.count)
    assert accepted.path[:count].tolist() == [0, 2]
    assert accepted.tokens[:count].tolist() == [8, 0]
    assert int(accepted.bonus) == 0


def test_a_root_alone_emits_its_own_draw() -> None:
    tree = CandidateTree.from_topology(TreeTopology.root_only(), torch.tensor([5]))
    accepted = greedy().accept(tree, prefer({0: 4}, 1), PAST)

    assert (int(accepted.count), int(accepted.bonus)) == (1, 4)


def test_an_unused_slot_is_never_accepted_though_its_token_is_right() -> None:
    tree = BestNodes(3, 1, VOCAB, {}, CPU).build(torch.tensor(5), prefer({0: 7}, 1) * 1e6 - 1e7, None, None)
    assert tree.used.tolist() == [True, True, False] or tree.used.tolist() == [True, False, False]
    wrong = int(tree.tokens[2])

    assert int(greedy().accept(tree, prefer({0: wrong}, 3), PAST).count) == 1


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 100_000), st.sampled_from([0.0, 1.0]), st.integers(2, 20))
def test_acceptance_is_a_walk_from_the_root_along_equal_draws(seed: int, temperature: float, nodes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    guesses = torch.randn(3, 4, generator=generator).log_softmax(-1)
    tree = BestNodes(nodes, 3, 4, {}, CPU).build(torch.tensor(1), guesses, None, None)
    logits = torch.randn(tree.num_nodes, 4, generator=generator)
    sampler = Sampler.of_request(SamplingParams(temperature=temperature, seed=seed), CPU)

    node, path, emitted = 0, [0], []
    while True:
        row = torch.tensor([0])
        drawn = int(sampler.draw(logits[node : node + 1], row, PAST + 1 + int(tree.depth[node]), 0))
        emitted.append(drawn)
        following = [n for n in range(1, tree.num_nodes) if tree.parent[n] == node and tree.tokens[n] == drawn]
        if not following:
            break
        node = following[0]
        path.append(node)

    accepted = Exact(sampler).accept(tree, logits, PAST)
    count = int(accepted.count)
    assert (accepted.path[:count].tolist(), accepted.tokens[:count].tolist()) == (path, emitted)
