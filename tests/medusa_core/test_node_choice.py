import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_core.memory import IMPOSSIBLE, NOTHING, kind_of
from medusa_core.node_choice import BestNodes, Proposal, StaticNodes, candidate_paths
from medusa_core.tree import SOURCES, CandidateTree, TreeTopology
from tests.cast import CPU

ROOT = torch.tensor(3)


def proposals(
    chains: dict[str, tuple[list[int], list[float]]],
) -> tuple[dict[str, TreeTopology], Proposal, torch.Tensor]:
    """Chains of tokens with the chances of each, by source: their shapes, themselves, and what the chances are."""
    shapes = {source: TreeTopology.chain(len(tokens)) for source, (tokens, _) in chains.items()}
    found = [
        Proposal(torch.tensor(tokens), torch.full((len(tokens),), kind_of(source, 0)))
        for source, (tokens, _) in chains.items()
    ]
    log_chances = torch.cat([torch.tensor(chances).log() for _, chances in chains.values()])
    return shapes, Proposal.joined(found), log_chances


def head_log_probs(heads: int, vocab: int, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(heads, vocab, generator=generator)).log_softmax(-1)


def brute_force(log_probs: torch.Tensor, nodes: int, penalty: float = 2e-3) -> set[tuple[int, ...]]:
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
    tree = BestNodes(nodes, heads, vocab, {}, CPU).build(ROOT, log_probs, None, None)

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
    tree = BestNodes(nodes, heads, 50, {}, CPU).build(ROOT, head_log_probs(heads, 50, seed, sharpness), None, None)

    assert tree.num_nodes == nodes
    assert torch.equal(tree.depth[1:], tree.depth[tree.parent[1:]] + 1)
    assert torch.equal(tree.ancestors.sum(1) - 1, torch.where(tree.used, tree.depth, 0))
    paths = token_paths(tree)
    assert len(set(paths)) == len(paths)


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 40), st.integers(2, 4), st.integers(0, 10_000), st.sampled_from([300.0, 1000.0, 3000.0]))
def test_a_parent_stands_before_its_child_also_where_only_the_certain_and_the_absurd_are_left(
    nodes: int, heads: int, seed: int, sharpness: float
) -> None:
    """Near temperature 0 a second guess has a log-probability in the thousands, where sums have few digits left."""
    tree = BestNodes(nodes, heads, 50, {}, CPU).build(ROOT, head_log_probs(heads, 50, seed, sharpness), None, None)

    used = tree.used.nonzero()[1:, 0]
    assert bool((tree.parent[used] < used).all())
    assert torch.equal(tree.depth[used], tree.depth[tree.parent[used]] + 1)
    assert torch.equal(tree.ancestors[used].sum(1) - 1, tree.depth[used])


def best_of_all(
    log_probs: torch.Tensor, trees: Sequence[dict[tuple[int, ...], float]], nodes: int
) -> dict[tuple[int, ...], float]:
    """The best paths among all that heads and others propose, the slow way; `trees` are scores by path of tokens."""
    heads, vocab = log_probs.shape
    scores = {
        path: sum(float(log_probs[depth, token]) for depth, token in enumerate(path))
        for length in range(1, heads + 1)
        for path in itertools.product(range(vocab), repeat=length)
    }
    for tree in trees:
        for path, score in tree.items():
            scores[path] = max(score, scores.get(path, -math.inf))
    return dict(sorted(scores.items(), key=lambda entry: -entry[1] + 2e-3 * len(entry[0]))[: nodes - 1])


def random_shape(size: int, generator: torch.Generator) -> TreeTopology:
    """A tree that grows at random, siblings ranked 0, 1, 2 and so on."""
    paths: list[tuple[int, ...]] = []
    for _ in range(size):
        parent = [(), *paths][int(torch.randint(len(paths) + 1, (), generator=generator))]
        paths.append((*parent, sum(path[:-1] == parent for path in paths)))
    return TreeTopology.from_paths(paths)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(2, 14),
    st.integers(0, 3),
    st.integers(3, 5),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(0, 10_000),
)
def test_proposals_compete_with_the_heads_and_share_nodes_with_them_and_each_other(
    nodes: int, heads: int, vocab: int, size: int, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = head_log_probs(heads, vocab, seed) if heads > 0 else torch.zeros(0, vocab)
    shapes, found, trees, chances = {}, [], [], []
    for source in SOURCES[1 : 1 + count]:
        shape = random_shape(size, generator)
        shuffled = {parent: torch.randperm(vocab, generator=generator).tolist() for parent in ((), *shape.paths)}
        shape = TreeTopology(tuple(path for path in shape.paths if max(path) < vocab))
        tokens = [shuffled[path[:-1]][path[-1]] for path in shape.paths]
        scores = -3 * torch.rand(len(tokens), generator=generator)
        shapes[source] = shape
        found.append(Proposal(torch.tensor(tokens), torch.full((len(tokens),), kind_of(source, 0))))
        chances.append(scores)
        of = dict(zip(shape.paths, zip(tokens, scores.tolist(), strict=True), strict=True))
        lines = [[of[path[: depth + 1]] for depth in range(len(path))] for path in shape.paths]
        trees.append({tuple(token for token, _ in line): sum(score for _, score in line) for line in lines})

    made = BestNodes(nodes, heads, vocab, shapes, CPU)
    anything = log_probs if heads > 0 else torch.zeros(1, 1)
    tree = made.build(ROOT, anything, Proposal.joined(found), torch.cat(chances))

    _, *paths = itertools.compress(token_paths(tree), tree.used.tolist())
    assert len(set(paths)) == len(paths)
    assert set(paths) == set(best_of_all(log_probs, trees, tree.num_nodes))
    assert torch.equal(tree.depth[tree.used][1:], tree.depth[tree.parent[tree.used]][1:] + 1)
    assert torch.equal(tree.ancestors.sum(1) - 1, torch.where(tree.used, tree.depth, 0))


def test_the_first_nodes_of_a_tree_are_the_tree_of_so_many_nodes() -> None:
    log_probs = head_log_probs(3, 20, seed=2)
    shapes, chains, chances = proposals({"lookup": ([4, 9, 2, 7, 1], [0.6, 0.9, 0.9, 0.9, 0.9])})
    large = BestNodes(24, 3, 20, shapes, CPU).build(ROOT, log_probs, chains, chances)

    for nodes in (2, 5, 9, 16):
        small = BestNodes(nodes, 3, 20, shapes, CPU).build(ROOT, log_probs, chains, chances)
        assert token_paths(small) == token_paths(large)[:nodes]
        assert torch.equal(small.kind, large.kind[:nodes])


def test_credit_goes_to_whoever_ranked_a_node_higher() -> None:
    log_probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()
    shapes, chains, chances = proposals({"lookup": ([0, 1, 1], [0.5, 0.9, 0.9])})

    tree = BestNodes(6, 2, 3, shapes, CPU).build(ROOT, log_probs, chains, chances)

    by_path = dict(zip(token_paths(tree), [SOURCES[source] for source in tree.source.tolist()], strict=True))
    assert by_path == {
        (): "heads",
        (0,): "heads",
        (1,): "heads",
        (0, 1): "lookup",
        (0, 2): "heads",
        (0, 1, 1): "lookup",
    }


def test_a_proposal_of_nothing_takes_no_node_from_the_heads() -> None:
    log_probs = head_log_probs(2, 5, seed=4)
    nothing = Proposal(torch.tensor([1, 2, 3]), torch.full((3,), NOTHING))

    made = BestNodes(7, 2, 5, {"lookup": TreeTopology.chain(3)}, CPU)
    tree = made.build(ROOT, log_probs, nothing, torch.full((3,), IMPOSSIBLE))

    assert bool(tree.used.all())
    assert set(token_paths(tree)) == set(token_paths(BestNodes(7, 2, 5, {}, CPU).build(ROOT, log_probs, None, None)))


def test_fewer_paths_than_slots_give_a_smaller_tree() -> None:
    assert BestNodes(64, 1, 5, {}, CPU).num_nodes == 6


def test_impossible_candidates_stay_unused_and_attend_only_to_themselves() -> None:
    log_probs = torch.full((2, 6), -math.inf)
    log_probs[0, 4] = log_probs[1, 2] = 0.0
    tree = BestNodes(8, 2, 6, {}, CPU).build(ROOT, log_probs, None, None)

    used = set(itertools.compress(token_paths(tree), tree.used.tolist()))
    assert used == {(), (4,), (4, 2)}
    assert torch.equal(tree.ancestors[~tree.used], torch.eye(8, dtype=torch.bool)[~tree.used])
    assert math.isfinite(IMPOSSIBLE)


def test_of_two_sources_that_say_the_same_the_surer_one_has_the_credit() -> None:
    log_probs = torch.tensor([[0.7, 0.2, 0.1]]).log()
    shapes, chains, chances = proposals({"lookup": ([1, 2], [0.3, 0.5]), "grammar": ([1, 0], [1.0, 1.0])})

    tree = BestNodes(6, 1, 3, shapes, CPU).build(ROOT, log_probs, chains, chances)

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

    guesses = BestNodes(3, 2, 3, {}, CPU).build(ROOT, log_probs, None, None).guesses
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
    shapes, says_the_same, chances = proposals({"lookup": ([70, 30], [0.9, 0.9])})

    static = StaticNodes(topology, CPU, ids).build(ROOT, log_probs)
    best = BestNodes(4, 2, 3, shapes, CPU, ids).build(ROOT, log_probs, says_the_same, chances)

    assert token_paths(static) == [(), (70,), (50,), (50, 30)]
    assert set(token_paths(best)) == {(), (70,), (50,), (70, 30)}
    assert static.guesses is not None and best.guesses is not None
    assert static.guesses.tolist() == best.guesses.tolist() == [70, 30]
