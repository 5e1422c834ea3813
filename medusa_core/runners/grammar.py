"""Between the halves of a step: ask a grammar, on the host, what may follow the root and each drafted node."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medusa_core.constraints import Constraint
from medusa_core.drafters import Grammatical, forced_span
from medusa_core.tree import CandidateTree

__all__ = ["HostTree", "check_tree", "host_tree", "unpack_masks", "what_follows"]


@dataclass(frozen=True)
class HostTree:
    """What the host needs to know of a drafted tree of N slots to walk it."""

    tokens: list[int]
    parents: list[int]
    used: list[bool]


def host_tree(tree: CandidateTree) -> HostTree:
    """A tree's tokens, parents and used slots, in one copy to the host."""
    tokens, parents, used = torch.stack([tree.tokens, tree.parent, tree.used.long()]).tolist()
    return HostTree(tokens, parents, [bool(slot) for slot in used])


def what_follows(
    constraint: Constraint, forced: Sequence[int], depth: int, vocab_size: int, device: torch.device
) -> Grammatical:
    """What may follow the root and the span that must, for drafters whose branches have `depth` tokens."""
    allowed = unpack_masks([constraint.allowed()], vocab_size, device)[0]
    return Grammatical(allowed, forced_span(forced, depth, device))


def check_tree(
    constraint: Constraint, tree: CandidateTree, drafted: HostTree, vocab_size: int
) -> tuple[CandidateTree, Tensor]:
    """The tree without the branches that the grammar forbids, and what it allows at each node.

    drafted: the same tree as the host read it before the forward pass was issued.

    Returns the tree and [N, V] bool; unused nodes allow everything, since no row may be without a token.
    """
    checked = constraint.check(drafted.tokens, drafted.parents, drafted.used)
    device = tree.tokens.device
    used = torch.tensor(checked.is_legal, device=device)
    return replace(tree, used=used), unpack_masks(checked.masks, vocab_size, device)


def unpack_masks(masks: Sequence[bytes | None], vocab_size: int, device: torch.device) -> Tensor:
    """Packed masks, the lowest bit first, as [N, V] bool; None allows everything."""
    width = -(-vocab_size // 8)
    everything = b"\xff" * width
    packed = b"".join(mask[:width].ljust(width, b"\0") if mask is not None else everything for mask in masks)
    bits = torch.frombuffer(bytearray(packed), dtype=torch.uint8).to(device).reshape(len(masks), width, 1)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    return ((bits >> shifts) & 1).bool().flatten(1)[:, :vocab_size]
