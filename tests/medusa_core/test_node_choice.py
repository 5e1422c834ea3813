import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_core.node_choice import IMPOSSIBLE, BestNodes, Branch, StaticNodes, candidate_paths
from medusa_core.tree import SOURCES, CandidateTree, TreeTopology
from tests.cast import CPU

ROOT = torch.tensor(3)


def head_log_probs(heads: int, vocab: int, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(heads, vocab, generator=generator)).log_softmax(-1)


def brute_force(log_probs: torch.Tensor, nodes: int, penalty: float = 1e-4) -> set[tuple[int, ...]]:
    """Token paths of the best nodes, by listing every path there is."""
    heads, vocab = log_probs.shape
    scored = [
        (sum(float(log_probs[d, t]) for d, t in enumerate(path)) - penalty * len(path), path)
        for depth in range(1, heads + 1)
        for path in itertools.product(range(vocab), repeat=depth)
    ]
    return {path for _, path in sorted(scored, reverse=True)[: nodes - 1]}


def token_paths(tree: CandidateTree) -> list[tuple[int, ...]]:
    """The tokens from below the root to each node."""
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, tree.num_nodes):
        paths.append((*paths[int(tree.parent[node])], int(tree.tokens[node])))
    return paths


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 14), st.integers(1, 3), st.integers(2, 5), st.integers(0, 10_000))
def test_one_top_k_finds_exactly_the_best_nodes(nodes: int, heads: int, vocab: int, seed: int) -> None:
    log_probs = head_log_probs(heads, vocab, seed)
    tree = BestNodes(nodes, heads, vocab, (), 0, CPU).build(ROOT, log_probs, ())

    assert set(token_paths(tree)[1:]) == brute_force(log_probs, nodes)


@pytest.mark.parametrize(("nodes", "heads", "size"), [(16, 3, 86), (16, 4, 129), (32, 3, 257), (64, 4, 1456)])
def test_the_list_of_candidate_paths_has_its_known_size(nodes: int, heads: int, size: int) -> None:
    assert len(candidate_paths(nodes, heads, 4096)) == size


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 3.0, 60.0]))
def test_every_kept_node_keeps_its_parent_and_siblings_differ(
    nodes: int, heads: int, seed: int, sharpness: float
) -> None:
    """Sharpness 0 makes every token equal, 60 makes one certain: both are ties that could part child and parent."""
    tree = BestNodes(nodes, heads, 50, (), 0, CPU).build(ROOT, head_log_probs(heads, 50, seed, sharpness), ())

    assert tree.num_nodes == nodes
    assert torch.equal(tree.depth[1:], tree.depth[tree.parent[1:]] + 1)
    assert torch.equal(tree.ancestors.sum(1) - 1, torch.where(tree.used, tree.depth, 0))
    paths = token_paths(tree)
    assert len(set(paths)) == len(paths)


def best_with_branches(log_probs: torch.Tensor, branches: Sequence[Branch], nodes: int) -> dict[tuple[int, ...], float]:
    """The best paths among all that heads and branches propose, the slow way."""
    heads, vocab = log_probs.shape
    scores = {
        path: sum(float(log_probs[depth, token]) for depth, token in enumerate(path))
        for length in range(1, heads + 1)
        for path in itertools.product(range(vocab), repeat=length)
    }
    for branch in branches:
        tokens, reached = tuple(branch.tokens.tolist()), branch.log_probs.cumsum(0).tolist()
        for depth, score in enumerate(reached, start=1):
            scores[tokens[:depth]] = max(score, scores.get(tokens[:depth], -math.inf))
    return dict(sorted(scores.items(), key=lambda entry: (-entry[1], len(entry[0])))[: nodes - 1])


@settings(deadline=None, max_examples=150)
@given(
    st.integers(2, 14),
    st.integers(0, 3),
    st.integers(2, 4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 10_000),
)
def test_branches_compete_with_the_heads_and_share_nodes_with_them_and_each_other(
    nodes: int, heads: int, vocab: int, depth: int, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = head_log_probs(heads, vocab, seed) if heads > 0 else torch.zeros(0, vocab)
    branches = [
        Branch(torch.randint(0, vocab, (depth,), generator=generator), -2 * torch.rand(depth, generator=generator))
        for _ in range(count)
    ]

    made = BestNodes(nodes, heads, vocab, SOURCES[1 : 1 + count], depth, CPU)
    tree = made.build(ROOT, log_probs if heads > 0 else torch.zeros(1, 1), branches)

    _, *paths = itertools.compress(token_paths(tree), tree.used.tolist())
    expected = best_with_branches(log_probs, branches, tree.num_nodes)
    assert len(set(paths)) == len(paths)
    assert set(paths) == set(expected)
    assert torch.equal(tree.depth[tree.used][1:], tree.depth[tree.parent[tree.used]][1:] + 1)
    assert torch.equal(tree.ancestors.sum(1) - 1, torch.where(tree.used, tree.depth, 0))


def test_credit_goes_to_whoever_ranked_a_node_higher() -> None:
    log_probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()
    branch = Branch(torch.tensor([0, 1, 1]), torch.tensor([0.5, 0.9, 0.9]).log())

    tree = BestNodes(6, 2, 3, ("lookup",), 3, CPU).build(ROOT, log_probs, [branch])

    by_path = dict(zip(token_paths(tree), [SOURCES[source] for source in tree.source.tolist()], strict=True))
    assert by_path == {
        (): "heads",
        (0,): "heads",
        (1,): "heads",
        (0, 1): "lookup",
        (0, 2): "heads",
        (0, 1, 1): "lookup",
    }


def test_an_impossible_branch_takes_no_node_from_the_heads() -> None:
    log_probs = head_log_probs(2, 5, seed=4)
    nothing = Branch(torch.tensor([1, 2, 3]), torch.full((3,), IMPOSSIBLE))

    tree = BestNodes(7, 2, 5, ("lookup",), 3, CPU).build(ROOT, log_probs, [nothing])

    assert bool(tree.used.all())
    assert set(token_paths(tree)) == set(token_paths(BestNodes(7, 2, 5, (), 0, CPU).build(ROOT, log_probs, ())))


def test_fewer_paths_than_slots_give_a_smaller_tree() -> None:
    assert BestNodes(64, 1, 5, (), 0, CPU).num_nodes == 6


def test_impossible_candidates_stay_unused_and_attend_only_to_themselves() -> None:
    log_probs = torch.full((2, 6), -math.inf)
    log_probs[0, 4] = log_probs[1, 2] = 0.0
    tree = BestNodes(8, 2, 6, (), 0, CPU).build(ROOT, log_probs, ())

    used = set(itertools.compress(token_paths(tree), tree.used.tolist()))
    assert used == {(), (4,), (4, 2)}
    assert torch.equal(tree.ancestors[~tree.used], torch.eye(8, dtype=torch.bool)[~tree.used])
    assert math.isfinite(IMPOSSIBLE)


def test_of_two_branches_that_say_the_same_the_surer_one_has_the_credit() -> None:
    log_probs = torch.tensor([[0.7, 0.2, 0.1]]).log()
    unsure = Branch(torch.tensor([1, 2]), torch.tensor([0.3, 0.5]).log())
    certain = Branch(torch.tensor([1, 0]), torch.tensor([0.0, 0.0]))

    tree = BestNodes(6, 1, 3, ("lookup", "grammar"), 2, CPU).build(ROOT, log_probs, [unsure, certain])

    by_path = dict(zip(token_paths(tree), [SOURCES[source] for source in tree.source.tolist()], strict=True))
    assert by_path == {
        (): "heads",
        (0,): "heads",
        (1,): "grammar",
        (2,): "heads",
        (1, 0): "grammar",
        (1, 2): "lookup",
    }


def test_a_tree_tells_what_each_head_found_likeliest() -> None:
    log_probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()

    guesses = BestNodes(3, 2, 3, (), 0, CPU).build(ROOT, log_probs, ()).guesses
    static = StaticNodes(TreeTopology.chain(2), CPU).build(ROOT, log_probs).guesses

    assert guesses is not None and static is not None
    assert guesses.tolist() == static.tolist() == [0, 2]


def test_what_cannot_be_drafted_leaves_its_slots_of_a_fixed_shape_unused() -> None:
    log_probs = torch.full((2, 3), IMPOSSIBLE)
    log_probs[0, 2] = log_probs[1, 1] = 0.0
    topology = TreeTopology.from_paths([(0,), (1,), (0, 0), (1, 0)])
    tree = StaticNodes(topology, CPU).build(ROOT, log_probs)

    assert tree.used.tolist() == [True, True, False, True, False]
    assert torch.equal(tree.ancestors[~tree.used], torch.eye(5, dtype=torch.bool)[~tree.used])


def test_static_nodes_take_each_heads_ranks() -> None:
    log_probs = torch.tensor([[0.1, 0.5, 0.4], [0.6, 0.1, 0.3]]).log()
    topology = TreeTopology.from_paths([(0,), (1,), (1, 0), (1, 1)])
    tree = StaticNodes(topology, CPU).build(ROOT, log_probs)

    assert token_paths(tree) == [(), (1,), (2,), (2, 0), (2, 2)]
    assert int(tree.tokens[0]) == 3


def test_columns_of_a_truncated_vocabulary_become_the_tokens_they_stand_for() -> None:
    log_probs = torch.tensor([[0.1, 0.5, 0.4], [0.6, 0.1, 0.3]]).log()
    ids = torch.tensor([30, 70, 50])
    topology = TreeTopology.from_paths([(0,), (1,), (1, 0)])
    says_the_same = Branch(torch.tensor([70, 30]), torch.tensor([-0.1, -0.1]))

    static = StaticNodes(topology, CPU, ids).build(ROOT, log_probs)
    best = BestNodes(4, 2, 3, ("lookup",), 2, CPU, ids).build(ROOT, log_probs, [says_the_same])

    assert token_paths(static) == [(), (70,), (50,), (50, 30)]
    assert set(token_paths(best)) == {(), (70,), (50,), (70, 30)}
    assert static.guesses is not None and best.guesses is not None
    assert static.guesses.tolist() == best.guesses.tolist() == [70, 30]
