"""Which candidates become the nodes of a tree: a fixed shape, or each step's best by estimated probability."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medusa_core.tree import SOURCES, CandidateTree, TreeTopology

__all__ = ["IMPOSSIBLE", "BestNodes", "Branch", "StaticNodes", "candidate_paths"]

# Score of a candidate that cannot be drafted; finite, because 0 * -inf would be NaN in the sums of the selection.
IMPOSSIBLE = -1e4
# Per level, so that at equal probability a parent always ranks before its child.
_DEPTH_PENALTY = 1e-4


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
    """Chooses, for each step, the N - 1 nodes of highest summed log-probability, exactly and with one top-k.

    Heads are independent, so a node with ranks (r_1 .. r_d) has at least sum over j of the product over i <= j of
    (r_i + 1) nodes that score as high. Only nodes for which this is at most N - 1 can be chosen; they are listed
    once, and a step only scores the list. Source: EAGLE-2 (arXiv:2406.16858) ranks the same way, level by level.

    Branches, which may reach deeper than the heads, join the same list: where one says what the heads or an earlier
    branch say it is their node and takes the highest of all scores, from where it parts from them it has nodes of its
    own.
    """

    def __init__(
        self,
        num_nodes: int,
        num_heads: int,
        vocab_size: int,
        branch_sources: Sequence[str],
        branch_depth: int,
        device: torch.device,
        token_ids: Tensor | None = None,
    ) -> None:
        """`branch_sources` are the names of the B branches that `build` will be given, each of `branch_depth` D.

        token_ids: [V] int64, the tokens behind the heads' columns; None when column i is token i.
        """
        self._token_ids = token_ids
        paths = candidate_paths(num_nodes, num_heads, vocab_size)
        num_branches = len(branch_sources)
        self._num_paths, self._branch_depth = len(paths), branch_depth
        self.num_nodes = min(num_nodes, len(paths) + num_branches * branch_depth + 1)
        self._levels = max((len(path) for path in paths), default=0)
        self.max_depth = max(self._levels, branch_depth if num_branches > 0 and self.num_nodes > 1 else 0)
        self._width = 1 + max((path[-1] for path in paths), default=0)
        topology = TreeTopology(tuple(paths))
        levels = max(self._levels, 1)
        padded_ranks = [[*path, *[0] * (levels - len(path))] for path in paths]
        self._ranks = torch.tensor(padded_ranks, dtype=torch.long, device=device).reshape(-1, levels)  # [U, levels]
        # Candidates are the U paths, then the D tokens of each branch; in `places` the root counts as 0, so candidate
        # c has place c + 1.
        branch_depths = list(range(1, branch_depth + 1))
        depths = (*topology.depths[1:], *(branch_depths * num_branches))
        self._depth = torch.tensor(depths, dtype=torch.long, device=device)  # [U + B * D]
        self._parent = torch.tensor(topology.parents[1:], dtype=torch.long, device=device)  # [U]
        # [U + 1, max_depth + 1], each path's nodes from the root down, then itself again
        place = {path: node for node, path in enumerate(((), *paths))}
        lineages = [[place[path[:depth]] for depth in range(self.max_depth + 1)] for path in ((), *paths)]
        self._lineages = torch.tensor(lineages, dtype=torch.long, device=device)
        own = len(paths) + 1 + torch.arange(num_branches * branch_depth, device=device)
        self._own = own.reshape(num_branches, branch_depth)  # places of the branches' own nodes
        # [D, max_depth + 1], how far down its branch each own node's lineage has come
        steps = [[min(depth, own) for depth in range(self.max_depth + 1)] for own in branch_depths]
        self._steps = torch.tensor(steps, dtype=torch.long, device=device).reshape(-1, self.max_depth + 1)
        self._on_path = torch.arange(levels, device=device) < self._depth[: len(paths), None]  # [U, levels]
        self._is_beyond = ~self._on_path
        # [U], 0 for paths deeper than any branch, which are on none
        is_short = self._depth[: len(paths)] <= branch_depth
        self._path_places = torch.arange(1, len(paths) + 1, device=device) * is_short
        self._path_depths = self._depth[: len(paths)].expand(num_branches, -1)  # [B, U]
        self._nowhere = torch.zeros(num_branches, self.max_depth + 1, dtype=torch.long, device=device)
        sources = [SOURCES.index(source) for source in (*branch_sources, "heads")]
        self._source_of = torch.tensor(sources, device=device)  # [B + 1]
        self._no_scores = torch.full((num_branches + 1, len(depths)), IMPOSSIBLE, device=device)
        self._root_index = torch.zeros(1, dtype=torch.long, device=device)
        self._slots = torch.arange(self.num_nodes, device=device)
        self._eye = torch.eye(self.num_nodes, dtype=torch.bool, device=device)

    def build(self, root: Tensor, log_probs: Tensor, branches: Sequence[Branch]) -> CandidateTree:
        """The best tree under `root` [] for calibrated head log-probabilities [K, V], all <= 0, and B branches.

        log_probs: any row stands in for them where there are no heads.
        branches:  one for each source named at construction, in that order.

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
        tokens = path_tokens.gather(1, self._depth[: self._num_paths, None] - 1)[:, 0]
        parent, lineages, source = self._parent, self._lineages, None
        if branches:
            proposed = torch.stack([branch.tokens for branch in branches])  # [B, D]
            reached = torch.stack([branch.log_probs for branch in branches]).cumsum(1).clamp(min=IMPOSSIBLE)
            lines = self._branch_places(path_tokens, proposed)  # [B, D + 1]
            by_source = self._no_scores.clone()
            by_source[-1, : self._num_paths] = score
            by_source[:-1].scatter_(1, lines[:, 1:] - 1, reached)
            # of equal scores the first: heads may be certain only because a grammar leaves them no choice
            score, who = by_source.max(dim=0)
            source = self._source_of[who]
            tokens = torch.cat([tokens, proposed.flatten()])
            parent = torch.cat([parent, lines[:, :-1].flatten()])
            lineages = torch.cat([lineages, lines[:, self._steps].flatten(end_dim=1)])
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
            guesses=token[:, 0] if self._levels > 0 else None,
        )

    def _branch_places(self, path_tokens: Tensor, proposed: Tensor) -> Tensor:
        """The places of each branch's nodes, root first: those of whoever says the same first, else its own.

        path_tokens: [U, levels] int64, what the heads say along each path.
        proposed:    [B, D] int64.

        Returns [B, D + 1] int64.
        """
        # [B, B, D], whether two branches have been the same so far; a branch is the same as itself, so one is found
        alike = (proposed[:, None] == proposed).cumprod(dim=2)
        places = self._own.gather(0, alike.argmax(dim=1))
        levels = min(self._levels, self._branch_depth)
        if levels > 0:
            agrees = path_tokens[:, :levels] == proposed[:, None, :levels]  # [B, U, levels]
            is_same = (agrees | self._is_beyond[:, :levels]).all(dim=2)
            shared = is_same * self._path_places  # [B, U]
            found = self._nowhere.scatter_reduce(1, self._path_depths, shared, "amax")
            found = found[:, 1 : self._branch_depth + 1]
            places = torch.where(found > 0, found, places)
        return torch.cat([self._nowhere[:, :1], places], dim=1)


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
