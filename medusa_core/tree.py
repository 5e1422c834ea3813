"""Trees of candidate tokens: their shape, their tokens and the one mask that attention and acceptance share.

Node 0 is the root, a token already decided; every other node continues its parent. Plain decoding is the tree that
has only a root, prefill is a chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = [
    "IMPOSSIBLE",
    "SOURCES",
    "BestNodes",
    "Branch",
    "CandidateTree",
    "StaticNodes",
    "TreeTopology",
    "ancestor_mask",
    "candidate_paths",
]

# Who may draft a node, in the words that statistics use; where two say the same, the one that ranked it higher has it.
SOURCES = ("heads", "lookup")
# Score of a candidate that cannot be drafted; finite, because 0 * -inf would be NaN in the sums of the selection.
IMPOSSIBLE = -1e4
# Per level, so that at equal probability a parent always ranks before its child.
_DEPTH_PENALTY = 1e-4


@dataclass(frozen=True)
class TreeTopology:
    """The shape of a tree as paths of ranks: path (0, 2) is the third guess of head 2 after the best of head 1.

    paths: one per node except the root, parents before children.
    """

    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def from_paths(cls, paths: Sequence[Sequence[int]]) -> Self:
        """Order the paths breadth first; raise ValueError when one lacks its parent or stands twice."""
        ordered = tuple(sorted((tuple(path) for path in paths), key=lambda path: (len(path), path)))
        known: set[tuple[int, ...]] = {()}
        for path in ordered:
            if not path or path in known:
                raise ValueError(f"path {path} stands twice")
            if path[:-1] not in known:
                raise ValueError(f"path {path} has no parent {path[:-1]} in the tree")
            if path[-1] < 0:
                raise ValueError(f"path {path} holds a negative rank")
            known.add(path)
        return cls(ordered)

    @classmethod
    def root_only(cls) -> Self:
        """The tree of plain decoding."""
        return cls(())

    @classmethod
    def chain(cls, length: int) -> Self:
        """The root and one guess per depth, `length` guesses in all."""
        return cls.from_paths([(0,) * depth for depth in range(1, length + 1)])

    @property
    def num_nodes(self) -> int:
        """N, root included."""
        return len(self.paths) + 1

    @property
    def max_depth(self) -> int:
        """Depth of the deepest node; 0 for a root alone."""
        return max((len(path) for path in self.paths), default=0)

    @property
    def parents(self) -> tuple[int, ...]:
        """Index of each node's parent; the root's is itself."""
        index = {path: node for node, path in enumerate(((), *self.paths))}
        return (0, *(index[path[:-1]] for path in self.paths))

    @property
    def depths(self) -> tuple[int, ...]:
        """Depth of each node; 0 for the root."""
        return (0, *(len(path) for path in self.paths))

    def pruned(self, max_depth: int, max_nodes: int) -> "TreeTopology":
        """The part of the tree that so many heads and nodes can fill."""
        fitting = [path for path in self.paths if len(path) <= max_depth]
        return TreeTopology(tuple(fitting[: max_nodes - 1]))


def ancestor_mask(parents: Sequence[int]) -> Tensor:
    """Which nodes each node continues, itself included.

    parents: N indices, each smaller than its child's except the root's own 0.

    Returns [N, N] bool, row n marks the ancestors of node n.
    """
    mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        mask[node] |= mask[parent]
    return mask


@dataclass(frozen=True)
class CandidateTree:
    """A tree with its tokens, as tensors on the device.

    tokens:    [N] int64.
    parent:    [N] int64, the root's is 0.
    depth:     [N] int64.
    ancestors: [N, N] bool, ancestors of each node and the node itself.
    used:      [N] bool; an unused slot is never compared and attends only to itself.
    source:    [N] int64, who drafted each node, an index into SOURCES.
    max_depth: no node is deeper; known on the host, sizes paths and noise.

    Used siblings carry distinct tokens.
    """

    tokens: Tensor
    parent: Tensor
    depth: Tensor
    ancestors: Tensor
    used: Tensor
    source: Tensor
    max_depth: int

    @classmethod
    def from_topology(cls, topology: TreeTopology, tokens: Tensor) -> Self:
        """Fill a shape with tokens [N]; every slot is used."""
        device = tokens.device
        return cls(
            tokens=tokens,
            parent=torch.tensor(topology.parents, device=device),
            depth=torch.tensor(topology.depths, device=device),
            ancestors=ancestor_mask(topology.parents).to(device),
            used=torch.ones(topology.num_nodes, dtype=torch.bool, device=device),
            source=torch.zeros(topology.num_nodes, dtype=torch.long, device=device),
            max_depth=topology.max_depth,
        )

    @classmethod
    def chain(cls, tokens: Tensor) -> Self:
        """Tokens [T] that follow one another: a prompt, as prefill sees it."""
        length, device = tokens.shape[0], tokens.device
        index = torch.arange(length, device=device)
        return cls(
            tokens=tokens,
            parent=(index - 1).clamp(min=0),
            depth=index,
            ancestors=index[:, None] >= index,
            used=torch.ones(length, dtype=torch.bool, device=device),
            source=torch.zeros(length, dtype=torch.long, device=device),
            max_depth=length - 1,
        )

    @property
    def num_nodes(self) -> int:
        """N, slots of the tree, root included."""
        return self.tokens.shape[0]

    def living(self, match: Tensor) -> Tensor:
        """Nodes whose whole ancestry, themselves included, matched.

        match: [N] bool.

        Returns [N] bool.
        """
        return ~(self.ancestors & ~match).any(dim=1)


@dataclass(frozen=True)
class Branch:
    """One continuation of the root that is proposed beside what the heads guess.

    tokens:    [D] int64.
    log_probs: [D] float32, <= 0, of each token given those before it; IMPOSSIBLE from where the branch has ended.
    """

    tokens: Tensor
    log_probs: Tensor


class StaticNodes:
    """Fills a fixed topology with the best-ranked tokens of each head."""

    def __init__(self, topology: TreeTopology, device: torch.device) -> None:
        self.num_nodes, self.max_depth = topology.num_nodes, topology.max_depth
        self._shape = CandidateTree.from_topology(
            topology, torch.zeros(self.num_nodes, dtype=torch.long, device=device)
        )
        self._width = 1 + max((path[-1] for path in topology.paths), default=0)
        self._row = torch.tensor([len(path) - 1 for path in topology.paths], dtype=torch.long, device=device)
        self._rank = torch.tensor([path[-1] for path in topology.paths], dtype=torch.long, device=device)

    def build(self, root: Tensor, log_probs: Tensor, branch: Branch | None) -> CandidateTree:
        """The tree under `root` [] from head log-probabilities [K, V]; K >= the topology's depth, V >= its width.

        A branch has no place in a fixed shape; give None.
        """
        guesses = log_probs.topk(self._width, dim=-1).indices[self._row, self._rank]
        shape = self._shape
        tokens = torch.cat([root.reshape(1), guesses])
        return CandidateTree(
            tokens, shape.parent, shape.depth, shape.ancestors, shape.used, shape.source, shape.max_depth
        )


class BestNodes:
    """Chooses, for each step, the N - 1 nodes of highest summed log-probability, exactly and with one top-k.

    Heads are independent, so a node with ranks (r_1 .. r_d) has at least sum over j of the product over i <= j of
    (r_i + 1) nodes that score as high. Only nodes for which this is at most N - 1 can be chosen; they are listed
    once, and a step only scores the list. Source: EAGLE-2 (arXiv:2406.16858) ranks the same way, level by level.

    A branch, which may reach deeper than the heads, joins the same list: where it says what the heads say it is their
    node and takes the higher of both scores, from where it parts from them it has nodes of its own.
    """

    def __init__(
        self, num_nodes: int, num_heads: int, vocab_size: int, branch_depth: int, device: torch.device
    ) -> None:
        """`branch_depth` is D, the length of the branches that will be given to `build`; 0 for none."""
        paths = candidate_paths(num_nodes, num_heads, vocab_size)
        self._num_paths, self._branch_depth = len(paths), branch_depth
        self.num_nodes = min(num_nodes, len(paths) + branch_depth + 1)
        self._levels = max((len(path) for path in paths), default=0)
        self.max_depth = max(self._levels, branch_depth if self.num_nodes > 1 else 0)
        self._width = 1 + max((path[-1] for path in paths), default=0)
        topology = TreeTopology(tuple(paths))
        levels = max(self._levels, 1)
        padded_ranks = [[*path, *[0] * (levels - len(path))] for path in paths]
        self._ranks = torch.tensor(padded_ranks, dtype=torch.long, device=device).reshape(-1, levels)  # [U, levels]
        self._rank = torch.tensor([path[-1] for path in paths], dtype=torch.long, device=device)
        # Candidates are the U paths and then the D tokens of a branch; in `places` the root counts as 0, so candidate
        # c has place c + 1.
        branch_depths = tuple(range(1, branch_depth + 1))
        self._depth = torch.tensor((*topology.depths[1:], *branch_depths), dtype=torch.long, device=device)  # [U + D]
        self._parent = torch.tensor(topology.parents[1:], dtype=torch.long, device=device)  # [U]
        # [U + 1, max_depth + 1], each path's nodes from the root down, then itself again
        place = {path: node for node, path in enumerate(((), *paths))}
        lineages = [[place[path[:depth]] for depth in range(self.max_depth + 1)] for path in ((), *paths)]
        self._lineages = torch.tensor(lineages, dtype=torch.long, device=device)
        # [U + D + 1, width], the place of each place's child by rank; 0, which is nobody's child, where there is none
        self._children = torch.zeros(len(paths) + branch_depth + 1, self._width, dtype=torch.long, device=device)
        for path, node in place.items():
            if path:
                self._children[place[path[:-1]], path[-1]] = node
        self._own = len(paths) + 1 + torch.arange(branch_depth, device=device)  # places of a branch's own nodes
        # [D, max_depth + 1], how far down its branch each own node's lineage has come
        steps = [[min(depth, own) for depth in range(self.max_depth + 1)] for own in branch_depths]
        self._steps = torch.tensor(steps, dtype=torch.long, device=device).reshape(-1, self.max_depth + 1)
        self._no_score = torch.full((branch_depth,), IMPOSSIBLE, device=device)
        self._on_path = torch.arange(levels, device=device) < self._depth[: len(paths), None]  # [U, levels]
        self._root_index = torch.zeros(1, dtype=torch.long, device=device)
        self._slots = torch.arange(self.num_nodes, device=device)
        self._eye = torch.eye(self.num_nodes, dtype=torch.bool, device=device)

    def build(self, root: Tensor, log_probs: Tensor, branch: Branch | None) -> CandidateTree:
        """The best tree under `root` [] for calibrated head log-probabilities [K, V], all <= 0, and a branch.

        branch: of the depth named at construction; None when that is 0.

        Candidates at or below IMPOSSIBLE stay in their slots, unused.
        """
        if self.num_nodes == 1:
            index = self._root_index
            return CandidateTree(root.reshape(1), index, index, self._eye, self._eye[0], index, 0)
        value, token = log_probs[: self._levels].topk(self._width, dim=-1)  # [K, width]
        value = value.clamp(min=IMPOSSIBLE)
        score = torch.where(self._on_path, value.T.gather(0, self._ranks), 0.0).sum(1)  # [U]
        tokens = token[self._depth[: self._num_paths] - 1, self._rank]
        parent, lineages, source = self._parent, self._lineages, None
        if branch is not None:
            line = self._branch_places(token, branch)
            reached = branch.log_probs.cumsum(0).clamp(min=IMPOSSIBLE)  # [D]
            alone = torch.cat([score, self._no_score])
            score = alone.scatter_reduce(0, line[1:] - 1, reached, "amax")
            source = (score > alone).long()
            tokens = torch.cat([tokens, branch.tokens])
            parent = torch.cat([parent, line[:-1]])
            lineages = torch.cat([lineages, line[self._steps]])
        ranked = score - _DEPTH_PENALTY * self._depth
        keep = ranked.topk(self.num_nodes - 1).indices.sort().values  # parents come before children
        kept = torch.cat([self._root_index, keep + 1])  # [N] places
        slot = kept.new_zeros(self._depth.shape[0] + 1).index_copy_(0, kept, self._slots)
        used = torch.cat([self._eye[0, :1], score[keep] > IMPOSSIBLE])
        ancestors = torch.zeros_like(self._eye).scatter_(1, slot[lineages[kept]], True)
        return CandidateTree(
            tokens=torch.cat([root.reshape(1), tokens[keep]]),
            parent=torch.cat([self._root_index, slot[parent[keep]]]),
            depth=torch.cat([self._root_index, self._depth[keep]]),
            ancestors=ancestors & used[:, None] | self._eye,
            used=used,
            source=torch.cat([self._root_index, source[keep]]) if source is not None else torch.zeros_like(kept),
            max_depth=self.max_depth,
        )

    def _branch_places(self, token: Tensor, branch: Branch) -> Tensor:
        """The places of a branch's nodes, root first: the heads' while they say the same, then its own.

        token: [K, width] int64, the heads' best guesses.

        Returns [D + 1] int64.
        """
        heads = min(self._levels, self._branch_depth)
        same = token[:heads] == branch.tokens[:heads, None]
        rank, agrees = same.long().argmax(dim=1), same.any(dim=1)  # [heads]
        places = [self._root_index[0]]
        is_shared = torch.ones_like(agrees[:1])[0] if heads else None
        for depth in range(self._branch_depth):
            place = self._own[depth]
            if is_shared is not None and depth < heads:
                child = self._children[places[-1], rank[depth]]
                is_shared = is_shared & agrees[depth] & (child > 0)
                place = torch.where(is_shared, child, place)
            places.append(place)
        return torch.stack(places)


def candidate_paths(num_nodes: int, num_heads: int, vocab_size: int) -> list[tuple[int, ...]]:
    """Every path of ranks that can be among the best `num_nodes` - 1, breadth first."""
    found: list[tuple[int, ...]] = []

    def grow(path: tuple[int, ...], size: int, product: int) -> None:
        for rank in range(vocab_size):
            grown = product * (rank + 1)
            if size + grown > num_nodes - 1:
                return
            found.append((*path, rank))
            if len(path) + 1 < num_heads:
                grow((*path, rank), size + grown, grown)

    if num_heads > 0:
        grow((), 0, 1)
    return sorted(found, key=lambda path: (len(path), path))
