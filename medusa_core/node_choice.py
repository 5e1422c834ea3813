"""Which candidates become the nodes of a tree: a fixed shape, or each step's best by estimated probability."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from medusa_core.memory import GUESS, IMPOSSIBLE
from medusa_core.tree import CandidateTree, TreeTopology

__all__ = ["BestNodes", "Proposal", "StaticNodes", "candidate_paths"]

# Per level, so that at equal probability a parent always ranks before its child: twice what float32 tells apart just
# above IMPOSSIBLE, and still far less than any estimate is good for.
_DEPTH_PENALTY = 2e-3


@dataclass(frozen=True)
class Proposal:
    """What one source proposes beside the guesses of the heads: the tokens of a tree of fixed shape under the root.

    tokens: [C] int64, in the order of the shape's paths; siblings differ.
    kinds:  [C] int64, how sure the source is of each, see memory.kind_of; NOTHING where it proposes none.
    """

    tokens: Tensor
    kinds: Tensor

    @classmethod
    def joined(cls, proposals: Sequence["Proposal"]) -> Self:
        """Several, one behind the other."""
        tokens, kinds = zip(*((proposal.tokens, proposal.kinds) for proposal in proposals), strict=True)
        return cls(torch.cat(tokens), torch.cat(kinds))


class StaticNodes:
    """Fills a fixed topology with the best-ranked tokens of each head."""

    def __init__(self, topology: TreeTopology, device: torch.device, token_ids: Tensor | None = None) -> None:
        """`token_ids` [V] int64 are the tokens behind the heads' columns; None when column i is token i."""
        self._token_ids = token_ids
        self.num_nodes, self.max_depth = topology.num_nodes, topology.max_depth
        self._shape = CandidateTree.from_topology(
            topology, torch.zeros(self.num_nodes, dtype=torch.long, device=device)
        )
        self._eye = torch.eye(self.num_nodes, dtype=torch.bool, device=device)
        self._width = 1 + max((path[-1] for path in topology.paths), default=0)
        self._row = torch.tensor([len(path) - 1 for path in topology.paths], dtype=torch.long, device=device)
        self._rank = torch.tensor([path[-1] for path in topology.paths], dtype=torch.long, device=device)

    def build(self, root: Tensor, log_probs: Tensor) -> CandidateTree:
        """The tree under `root` [] from head log-probabilities [K, V]; K >= the topology's depth, V >= its width.

        Slots whose token is at or below IMPOSSIBLE are unused, and so is what hangs under them.
        """
        value, guesses = log_probs.topk(self._width, dim=-1)
        if self._token_ids is not None:
            guesses = self._token_ids[guesses]
        shape = self._shape
        possible = torch.cat([shape.used[:1], value[self._row, self._rank] > IMPOSSIBLE])
        used = shape.living(possible)
        return replace(
            shape,
            tokens=torch.cat([root.reshape(1), guesses[self._row, self._rank]]),
            ancestors=shape.ancestors & used[:, None] | self._eye,
            used=used,
            guesses=guesses[:, 0] if guesses.shape[0] > 0 else None,
        )


class BestNodes:
    """Chooses, for each step, the N - 1 nodes of highest estimated probability, exactly and with one top-k.

    Node n is the n-th best, so the first nodes of a tree are the tree of so many nodes.

    Heads are independent, so a node with ranks (r_1 .. r_d) has at least sum over j of the product over i <= j of
    (r_i + 1) nodes that score as high. Only nodes for which this is at most N - 1 can be chosen; they are listed
    once, and a step only scores the list. Source: EAGLE-2 (arXiv:2406.16858) ranks the same way, level by level.

    What others propose, which may reach deeper than the heads, joins the same list: where one says what the heads or
    an earlier one say it is their node and takes the highest of all scores, from where it parts from them it has nodes
    of its own.
    """

    def __init__(
        self,
        num_nodes: int,
        num_heads: int,
        vocab_size: int,
        shapes: Mapping[str, TreeTopology],
        device: torch.device,
        token_ids: Tensor | None = None,
    ) -> None:
        """`shapes` are those of the proposals that `build` will be given, by the name of their source.

        token_ids: [V] int64, the tokens behind the heads' columns; None when column i is token i.
        """
        self._token_ids = token_ids
        own = TreeTopology(tuple(candidate_paths(num_nodes, num_heads, vocab_size)))
        self._levels = own.max_depth
        others = _joined(shapes.values())
        num_paths, num_others = len(own.paths), len(others.depths)
        self.num_nodes = min(num_nodes, num_paths + num_others + 1)
        self.max_depth = max(own.max_depth, others.max_depth) if self.num_nodes > 1 else 0
        self._width = 1 + max((path[-1] for path in own.paths), default=0)
        levels = max(self._levels, 1)
        self._ranks = _tensor(
            [[*path, *[0] * (levels - len(path))] for path in own.paths], device, levels
        )  # [U, levels]
        # Candidates are the U paths, then the E nodes of the proposals; in places the root counts as 0, so candidate c
        # has place c + 1. Nodes of the proposals that are the same as an earlier candidate leave theirs empty.
        self._depth = _tensor([*own.depths[1:], *others.depths], device)  # [U + E]
        self._parent = _tensor(own.parents[1:], device)  # [U]
        self._lineages = _tensor(_own_lineages(own, self.max_depth), device, self.max_depth + 1)  # [U + 1, D + 1]
        self._on_path = torch.arange(levels, device=device) < self._depth[:num_paths, None]  # [U, levels]
        # In the proposals' own counting the root is behind the last node, as is everything above it.
        self._other_parents = _tensor(others.parents, device)  # [E]
        self._other_lineages = _tensor(others.lineages, device, others.max_depth)  # [E, D']
        self.proposed_depths = self._depth[num_paths:]  # [E]
        self._other_steps = _tensor(others.steps(self.max_depth), device, self.max_depth + 1)  # [E, D + 1]
        # Odd multipliers of full width: two paths of tokens have equal sums by accident only, and then share a node.
        generator = torch.Generator().manual_seed(0)
        multipliers = torch.randint(1 << 62, (max(self.max_depth, 1),), generator=generator) * 2 + 1
        self._multipliers = multipliers.to(device)
        owners = [row for row, shape in enumerate(shapes.values()) for _ in shape.paths]
        rows = _tensor(owners, device)
        self._row_starts = rows * (num_paths + num_others)  # [E], where a source's row of scores begins
        self._no_scores = torch.full((len(shapes) + 1, num_paths + num_others), IMPOSSIBLE, device=device)
        self._no_kinds = torch.full_like(self._no_scores, GUESS, dtype=torch.long)
        self._no_token, self._no_chance = _tensor([-1], device), torch.zeros(1, device=device)
        self._root_index = torch.zeros(1, dtype=torch.long, device=device)
        self._slots = torch.arange(self.num_nodes, device=device)
        self._eye = torch.eye(self.num_nodes, dtype=torch.bool, device=device)

    def build(
        self, root: Tensor, log_probs: Tensor, proposed: Proposal | None, log_chances: Tensor | None
    ) -> CandidateTree:
        """The best tree under `root` [] for calibrated head log-probabilities [K, V], all <= 0, and what is proposed.

        log_probs:   any row stands in for them where there are no heads.
        proposed:    E tokens of all the sources named at construction, in that order; None where there are none.
        log_chances: [E] float32, log-probability of each given the one before it, <= 0.

        Candidates at or below IMPOSSIBLE stay in their slots, unused.
        """
        if self.num_nodes == 1:
            index = self._root_index
            return CandidateTree(root.reshape(1), index, index, self._eye, self._eye[0], index, 0, None)
        value, token = log_probs[: max(self._levels, 1)].topk(self._width, dim=-1)  # [K, width]
        if self._token_ids is not None:
            # here, behind the selection, only what was selected has to be looked up
            token = self._token_ids[token]
        value = value.clamp(min=IMPOSSIBLE)
        score = torch.where(self._on_path, value.T.gather(0, self._ranks), 0.0).sum(1)  # [U]
        path_tokens = token.T.gather(0, self._ranks)  # [U, levels]
        tokens = path_tokens.gather(1, self._depth[: len(score), None] - 1)[:, 0]
        parent, lineages, kind = self._parent, self._lineages, None
        if proposed is not None and log_chances is not None:
            reached = torch.cat([log_chances, self._no_chance])[self._other_lineages].sum(1).clamp(min=IMPOSSIBLE)
            other_tokens = torch.cat([proposed.tokens, self._no_token])[self._other_lineages]
            places = self._places(path_tokens, other_tokens)  # [E + 1]
            at = self._row_starts + places[:-1] - 1
            by_source = self._no_scores.clone()
            by_source[-1, : len(score)] = score
            by_source.view(-1).index_copy_(0, at, reached)
            # of equal scores the first: heads may be certain only because a grammar leaves them no choice
            score, who = by_source.max(dim=0)
            kind = self._no_kinds.clone()
            kind.view(-1).index_copy_(0, at, proposed.kinds)
            kind = kind.gather(0, who[None])[0]
            tokens = torch.cat([tokens, proposed.tokens])
            parent = torch.cat([parent, places[self._other_parents]])
            lineages = torch.cat([lineages, places[self._other_steps]])
        # parents come before their children: a child scores no higher, and is deeper
        keep = (score - _DEPTH_PENALTY * self._depth).topk(self.num_nodes - 1).indices
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
            kind=torch.cat([self._root_index, kind[keep]]) if kind is not None else torch.zeros_like(kept),
            max_depth=self.max_depth,
            guesses=token[:, 0] if self._levels > 0 else None,
        )

    def _places(self, path_tokens: Tensor, other_tokens: Tensor) -> Tensor:
        """The place of each proposed node, which is that of the first candidate with the same path, and the root's.

        path_tokens:  [U, levels] int64, what the heads say along each path, then anything.
        other_tokens: [E, D'] int64, what is proposed on the way to each node, and -1 for what there is not.

        Returns [E + 1] int64.
        """
        # paths are told apart by a sum of products that wraps round; 0 is added for what is not on them
        multipliers = self._multipliers
        own = ((path_tokens + 1) * self._on_path * multipliers[: path_tokens.shape[1]]).sum(1)
        others = ((other_tokens + 1) * multipliers[: other_tokens.shape[1]]).sum(1)
        is_same = others[:, None] == torch.cat([own, others])  # [E, U + E]; each is the same as itself, so one is found
        return torch.cat([is_same.to(torch.uint8).argmax(dim=1) + 1, self._root_index])


@dataclass(frozen=True)
class _Joined:
    """Several trees under one root, nodes counted through and the root behind the last of them.

    parents:  of each node.
    lineages: of each node, its ancestors from the root's child down to itself, filled up with the root to equal length.
    """

    depths: list[int]
    parents: list[int]
    lineages: list[list[int]]

    @property
    def max_depth(self) -> int:
        return max(self.depths, default=0)

    def steps(self, depth: int) -> list[list[int]]:
        """Of each node, the root and its ancestors down to itself, filled up with itself to `depth` + 1 entries."""
        root = len(self.depths)
        found = []
        for node, (line, length) in enumerate(zip(self.lineages, self.depths, strict=True)):
            found.append([root, *line[:length], *[node] * (depth - length)])
        return found


def _joined(shapes: Iterable[TreeTopology]) -> _Joined:
    shapes = tuple(shapes)
    root = sum(len(shape.paths) for shape in shapes)
    depth = max((shape.max_depth for shape in shapes), default=0)
    joined, start = _Joined([], [], []), 0
    for shape in shapes:
        node = {path: start + index for index, path in enumerate(shape.paths)}
        node[()] = root
        for path in shape.paths:
            line = [node[path[: length + 1]] for length in range(len(path))]
            joined.depths.append(len(path))
            joined.parents.append(node[path[:-1]])
            joined.lineages.append(line + [root] * (depth - len(line)))
        start += len(shape.paths)
    return joined


def _own_lineages(topology: TreeTopology, depth: int) -> list[list[int]]:
    """Of the root and each node, the nodes from the root down to itself, then itself again."""
    place = {path: node for node, path in enumerate(((), *topology.paths))}
    return [[place[path[:length]] for length in range(depth + 1)] for path in ((), *topology.paths)]


def _tensor(values: Sequence[Any], device: torch.device, *shape: int) -> Tensor:
    """Whole numbers on the device; rows of this width, also when there are none."""
    return torch.tensor(values, dtype=torch.long, device=device).reshape(len(values), *shape)


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
