import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medusa_core.tree import CandidateTree, TreeTopology

ROOT = torch.tensor(3)


@st.composite
def topologies(draw: st.DrawFn, max_nodes: int = 12) -> TreeTopology:
    """Any tree: each node hangs under an earlier one, with the next free rank."""
    paths: list[tuple[int, ...]] = [()]
    children: dict[tuple[int, ...], int] = {}
    for _ in range(draw(st.integers(0, max_nodes - 1))):
        parent = draw(st.sampled_from(paths))
        rank = children.get(parent, 0)
        children[parent] = rank + 1
        paths.append((*parent, rank))
    return TreeTopology.from_paths(paths[1:])


def test_a_chain_has_one_node_per_depth() -> None:
    assert TreeTopology.chain(3).paths == ((0,), (0, 0), (0, 0, 0))
    assert TreeTopology.chain(3).parents == (0, 0, 1, 2)
    assert TreeTopology.root_only().num_nodes == 1


@pytest.mark.parametrize(
    ("paths", "reason"),
    [([(0, 0)], "no parent"), ([(0,), (0,)], "twice"), ([()], "twice"), ([(-1,)], "negative")],
)
def test_malformed_topologies_are_refused(paths: list[tuple[int, ...]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TreeTopology.from_paths(paths)


def test_pruning_keeps_a_tree_that_so_many_heads_can_fill() -> None:
    tree = TreeTopology.from_paths([(0,), (1,), (0, 0), (0, 0, 0), (0, 0, 0, 0)])

    assert tree.pruned(max_depth=2, max_nodes=99).paths == ((0,), (1,), (0, 0))
    assert tree.pruned(max_depth=9, max_nodes=3).paths == ((0,), (1,))


@given(topologies())
def test_the_ancestor_mask_is_reflexive_transitive_and_counts_depth(topology: TreeTopology) -> None:
    tree = CandidateTree.from_topology(topology, torch.zeros(topology.num_nodes, dtype=torch.long))
    mask = tree.ancestors.long()

    assert bool(tree.ancestors.diagonal().all())
    assert torch.equal(mask.sum(1) - 1, tree.depth)
    assert bool(((mask @ mask > 0) == tree.ancestors).all())
    assert bool((tree.parent <= torch.arange(tree.num_nodes)).all())


@given(st.integers(1, 9))
def test_a_chain_of_tokens_is_the_chain_topology(length: int) -> None:
    tokens = torch.arange(length)
    chain, topology = CandidateTree.chain(tokens), CandidateTree.from_topology(TreeTopology.chain(length - 1), tokens)

    for name in ("tokens", "parent", "depth", "ancestors", "used"):
        assert torch.equal(getattr(chain, name), getattr(topology, name)), name
    assert chain.max_depth == topology.max_depth


@given(topologies(), st.integers(0, 10_000))
def test_a_node_lives_when_its_whole_ancestry_matched(topology: TreeTopology, seed: int) -> None:
    tree = CandidateTree.from_topology(topology, torch.zeros(topology.num_nodes, dtype=torch.long))
    match = torch.rand(tree.num_nodes, generator=torch.Generator().manual_seed(seed)) < 0.6

    walked = [bool(match[0])]
    for node in range(1, tree.num_nodes):
        walked.append(bool(match[node]) and walked[topology.parents[node]])

    assert tree.living(match).tolist() == walked
