"""Trees of candidate tokens: their shape, their tokens and the one mask that attention and acceptance share.

Node 0 is the root, a token already decided; every other node continues its parent. Plain decoding is the tree that
has only a root, prefill is a chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

__all__ = [
    "GRADES",
    "SOURCES",
    "CandidateTree",
    "Ranking",
    "TreeTopology",
    "ancestor_mask",
]

# Who may draft a node, in the words that statistics use; where two say the same, the one that ranked it higher has it.
SOURCES = ("heads", "lookup", "recycling", "prediction", "grammar")
# How many degrees of sureness each of them tells apart; with the source they make a node's kind.
GRADES = 8


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
class Ranking:
    """What the nodes of a tree were ranked by, for somebody who looks at it.

    scores: [N] float32, log of the estimated probability that a step accepts the node, 0 for the root.
    ranks:  [N] int64, the node's place among the guesses of its head, 0 for the likeliest; tells nothing of nodes that
            somebody else has drafted.
    """

    scores: Tensor
    ranks: Tensor


@dataclass(frozen=True)
class CandidateTree:
    """A tree with its tokens, as tensors on the device.

    tokens:    [N] int64.
    parent:    [N] int64, the root's is 0.
    depth:     [N] int64.
    ancestors: [N, N] bool, ancestors of each node and the node itself.
    used:      [N] bool; an unused slot is never compared and attends only to itself.
    kind:      [N] int64, who drafted each node and how sure it was: an index into SOURCES times GRADES, plus the grade.
    max_depth: no node is deeper; known on the host, sizes paths and noise.
    guesses:   [K] int64, the likeliest token of each head, for its statistics; None without heads.
    noise:     [R, V] float32, what is added where nodes of depth 0, 1, .. draw, R > max_depth; None where whoever
               drafted had no use for it.
    ranking:   None where nobody looks at the tree.

    Used siblings carry distinct tokens.
    """

    tokens: Tensor
    parent: Tensor
    depth: Tensor
    ancestors: Tensor
    used: Tensor
    kind: Tensor
    max_depth: int
    guesses: Tensor | None
    noise: Tensor | None = None
    ranking: Ranking | None = None

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
            kind=torch.zeros(topology.num_nodes, dtype=torch.long, device=device),
            max_depth=topology.max_depth,
            guesses=None,
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
            kind=torch.zeros(length, dtype=torch.long, device=device),
            max_depth=length - 1,
            guesses=None,
        )

    @classmethod
    def padded_chain(cls, tokens: Tensor, length: Tensor) -> Self:
        """A chain of `length` [] int64 of the tokens [T]; the slots behind them are not used."""
        chain = cls.chain(tokens)
        used = chain.depth < length
        itself = torch.eye(tokens.shape[0], dtype=torch.bool, device=tokens.device)
        return replace(chain, used=used, ancestors=chain.ancestors & used[:, None] | itself)

    @property
    def num_nodes(self) -> int:
        """N, slots of the tree, root included."""
        return self.tokens.shape[0]

    @property
    def source(self) -> Tensor:
        """[N] int64, who drafted each node, an index into SOURCES."""
        return self.kind // GRADES

    def living(self, match: Tensor) -> Tensor:
        """Nodes whose whole ancestry, themselves included, matched.

        match: [N] bool.

        Returns [N] bool.
        """
        return ~(self.ancestors & ~match).any(dim=1)
