"""Which candidates become the nodes of a tree: a fixed shape, or each step's best by estimated probability."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from medusa_core.memory import GUESS, IMPOSSIBLE
from medusa_core.tree import CandidateTree, Ranking, TreeTopology

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

    def build(self, root: Tensor, log_probs: Tensor, is_watched: bool = False) -> CandidateTree:
        """The tree under `root` [] from head log-probabilities [K, V]; K >= the topology's depth, V >= its width.

        is_watched: whether the tree is to hold its ranking.

        Slots whose token is at or below IMPOSSIBLE are unused, and so is what hangs under them.
        """
        value, guesses = log_probs.topk(self._width, dim=-1)
        if self._token_ids is not None:
            guesses = self._token_ids[guesses]
        shape = self._shape
        log_chances = value[self._row, self._rank]
        possible = torch.cat([shape.used[:1], log_chances > IMPOSSIBLE])
        used = shape.living(possible)
        return replace(
            shape,
            tokens=torch.cat([root.reshape(1), guesses[self._row, self._rank]]),
            ancestors=shape.ancestors & used[:, None] | self._eye,
            used=used,
            guesses=guesses[:, 0] if guesses.shape[0] > 0 else None,
            ranking=self._ranking(log_chances) if is_watched else None,
        )

    def _ranking(self, log_chances: Tensor) -> Ranking:
        """The ranking of nodes with these log-probabilities [N - 1], each given its parent."""
        steps = torch.cat([log_chances.new_zeros(1), log_chances.clamp(min=IMPOSSIBLE)])
        scores = torch.where(self._shape.ancestors, steps, 0.0).sum(1)
        return Ranking(scores, torch.cat([self._rank.new_zeros(1), self._rank]))


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
        others = _joined(shapes.values())
        self._num_paths, num_candidates = len(own.paths), len(own.paths) + len(others.depths)
        self.num_nodes = min(num_nodes, num_candidates + 1)
        self.max_depth = max(own.max_depth, others.max_depth) if self.num_nodes > 1 else 0
        self._levels, self._width = own.max_depth, 1 + max((path[-1] for path in own.paths), default=0)
        # Candidates are the U paths, then the E nodes of the proposals, then the root. Nodes of the proposals that are
        # the same as an earlier candidate leave their own place empty.
        depths = [*own.depths[1:], *others.depths]
        self._depth = _tensor([*depths, 0], device)  # [U + E + 1]
        self._penalty = torch.tensor(depths, dtype=torch.float32, device=device) * _DEPTH_PENALTY
        self.proposed_depths = self._depth[self._num_paths : -1]  # [E]
        # Of each path the cells of the flat [K, width] guesses on it, filled up with one behind them that counts 0.
        beyond = self._levels * self._width
        cells = [[depth * self._width + rank for depth, rank in enumerate(path)] for path in own.paths]
        self._cells = _tensor([[*line, *[beyond] * (self._levels - len(line))] for line in cells], device, self._levels)
        self._last_cell = _tensor([line[-1] for line in cells], device)  # [U]
        self._rank = _tensor([*(path[-1] for path in own.paths), *[0] * len(others.depths), 0], device)  # [U + E + 1]
        # Of each proposed node those on the way to it, in the proposals' own counting, filled up the same way.
        self._lines = _tensor(others.lineages, device, others.max_depth)  # [E, D']
        # Of each candidate its parent, then its ancestors from the root down to itself, then itself again.
        self._own_steps = _tensor(_own_steps(own, self.max_depth, num_candidates), device, self.max_depth + 2)
        self._other_steps = _tensor(others.steps(self.max_depth), device, self.max_depth + 2)  # [E, D + 2]
        # Odd multipliers of full width: two paths of tokens have equal sums by accident only, and then share a node.
        generator = torch.Generator().manual_seed(0)
        multipliers = (torch.randint(1 << 62, (max(self.max_depth, 1),), generator=generator) * 2 + 1).to(device)
        self._own_multipliers = multipliers[: self._levels, None]
        self._other_multipliers = multipliers[self.proposed_depths - 1]
        self._no_sum, self._no_score = _tensor([0], device), torch.zeros(1, device=device)
        self._unreached = torch.full((len(others.depths),), IMPOSSIBLE, device=device)
        self._guesses = torch.full((num_candidates + 1,), GUESS, device=device)
        self._root_index = _tensor([num_candidates], device)
        self._slots = torch.arange(self.num_nodes, device=device)
        self._eye = torch.eye(self.num_nodes, dtype=torch.bool, device=device)

    def build(
        self,
        root: Tensor,
        log_probs: Tensor,
        proposed: Proposal | None,
        log_chances: Tensor | None,
        is_watched: bool = False,
    ) -> CandidateTree:
        """The best tree under `root` [] for calibrated head log-probabilities [K, V], all <= 0, and what is proposed.

        log_probs:   any row stands in for them where there are no heads.
        proposed:    E tokens of all the sources named at construction, in that order; None where there are none.
        log_chances: [E] float32, log-probability of each given the one before it, <= 0.
        is_watched:  whether the tree is to hold its ranking.

        Candidates at or below IMPOSSIBLE stay in their slots, unused.
        """
        if self.num_nodes == 1:
            index = self._slots
            ranking = Ranking(self._no_score, index) if is_watched else None
            return CandidateTree(
                root.reshape(1), index, index, self._eye, self._eye[0], index, 0, None, ranking=ranking
            )
        value, token = log_probs[: self._levels].topk(self._width, dim=-1)  # [K, width]
        if self._token_ids is not None:
            # here, behind the selection, only what was selected has to be looked up
            token = self._token_ids[token]
        reached = torch.cat([value.flatten(), self._no_score])[self._cells].sum(1)  # [U]
        tokens, steps, kinds = token.flatten()[self._last_cell], [self._own_steps], self._guesses
        score = reached.clamp(min=IMPOSSIBLE)
        if proposed is not None and log_chances is not None:
            places = self._places(token, proposed.tokens)  # [E + 1]
            own, at = score, places[:-1]
            reached = torch.cat([log_chances, self._no_score])[self._lines].sum(1).clamp(min=IMPOSSIBLE)  # [E]
            score = torch.cat([own, self._unreached]).scatter_reduce(0, at, reached, "amax")
            # of equal scores the heads' counts last: they may be certain only because a grammar leaves them no choice
            winners = torch.where(reached >= score[at], proposed.kinds, GUESS)
            kinds = kinds.scatter_reduce(0, at, winners, "amax")
            tokens = torch.cat([tokens, proposed.tokens])
            steps.append(places[self._other_steps])
        # parents come before their children: a child scores no higher, and is deeper
        best = (score - self._penalty).topk(self.num_nodes - 1)
        kept = torch.cat([self._root_index, best.indices])  # [N]
        slot = torch.zeros_like(kinds).index_copy_(0, kept, self._slots)
        lines = slot[torch.cat([*steps, self._root_index.expand(1, self.max_depth + 2)])[kept]]  # [N, D + 2]
        used = torch.cat([self._eye[0, :1], best.values > IMPOSSIBLE])
        ancestors = torch.zeros_like(self._eye).scatter_(1, lines, True)
        return CandidateTree(
            tokens=torch.cat([tokens, root.reshape(1)])[kept],
            parent=lines[:, 0],
            depth=self._depth[kept],
            ancestors=ancestors & used[:, None] | self._eye,
            used=used,
            kind=kinds[kept],
            max_depth=self.max_depth,
            guesses=token[:, 0] if self._levels > 0 else None,
            ranking=Ranking(torch.cat([score, self._no_score])[kept], self._rank[kept]) if is_watched else None,
        )

    def _places(self, token: Tensor, proposed: Tensor) -> Tensor:
        """The place of each proposed node, which is that of the first candidate with the same path, and the root's.

        token:    [K, width] int64, the guesses of the heads.
        proposed: [E] int64.

        Returns [E + 1] int64.
        """
        # paths are told apart by a sum of products that wraps round; 0 is added for what is not on them
        own = torch.cat([((token + 1) * self._own_multipliers).flatten(), self._no_sum])[self._cells].sum(1)
        others = torch.cat([(proposed + 1) * self._other_multipliers, self._no_sum])[self._lines].sum(1)
        is_same = others[:, None] == torch.cat([own, others])  # [E, U + E]; each is the same as itself, so one is found
        return torch.cat([is_same.view(torch.uint8).argmax(dim=1), self._root_index])


@dataclass(frozen=True)
class _Joined:
    """Several trees under one root, nodes counted through and the root behind the last of them.

    lineages: of each node, its ancestors from the root's child down to itself, filled up with the root to equal length.
    """

    depths: list[int]
    lineages: list[list[int]]

    @property
    def max_depth(self) -> int:
        return max(self.depths, default=0)

    def steps(self, depth: int) -> list[list[int]]:
        """Of each node its parent, then the root and its ancestors down to itself, and itself up to `depth` + 2."""
        root = len(self.depths)
        found = []
        for node, (line, length) in enumerate(zip(self.lineages, self.depths, strict=True)):
            down = [root, *line[:length]]
            found.append([down[-2], *down, *[node] * (depth - length)])
        return found


def _joined(shapes: Iterable[TreeTopology]) -> _Joined:
    shapes = tuple(shapes)
    root = sum(len(shape.paths) for shape in shapes)
    depth = max((shape.max_depth for shape in shapes), default=0)
    joined, start = _Joined([], []), 0
    for shape in shapes:
        node = {path: start + index for index, path in enumerate(shape.paths)}
        node[()] = root
        for path in shape.paths:
            line = [node[path[: length + 1]] for length in range(len(path))]
            joined.depths.append(len(path))
            joined.lineages.append(line + [root] * (depth - len(line)))
        start += len(shape.paths)
    return joined


def _own_steps(topology: TreeTopology, depth: int, root: int) -> list[list[int]]:
    """Of each path its parent, then the nodes from the root down to itself, then itself again."""
    place = {path: node for node, path in enumerate(topology.paths)}
    place[()] = root
    lines = [[place[path[:length]] for length in range(depth + 1)] for path in topology.paths]
    return [[place[path[:-1]], *line] for path, line in zip(topology.paths, lines, strict=True)]


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
