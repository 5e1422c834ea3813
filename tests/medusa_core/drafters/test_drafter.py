from collections.abc import Callable

import pytest
import torch

from medusa_core.drafters import Drafter, DraftState, MedusaDrafter, MergedDrafter, RootOnly
from medusa_core.heads import DraftHeads
from medusa_core.tree import TreeTopology
from tests.cast import CPU, FixedDrafter, Oracle, random_heads

HEADS = random_heads(torch.randn(23, 16, generator=torch.Generator().manual_seed(0)), 3)
STATE = DraftState(
    torch.tensor(5),
    torch.randn(16, generator=torch.Generator().manual_seed(1)),
    torch.tensor(12),
    history=torch.tensor([4, 5, 6, 7, 8, 9, 1, 2, 3, 2, 3, 4, 5, *range(10)]),
)


def best_nodes(heads: DraftHeads = HEADS, nodes: int = 12) -> MedusaDrafter:
    return MedusaDrafter.best_nodes(heads, torch.ones(heads.config.num_heads), nodes)


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "plain": lambda: RootOnly(CPU),
    "dynamic": best_nodes,
    "merged": lambda: MergedDrafter.best_nodes(HEADS, torch.ones(3), 12, 8),
    "chain": lambda: MedusaDrafter.static(HEADS, torch.ones(3), TreeTopology.chain(3)),
    "oracle": lambda: Oracle(range(40), 0, 23),
    "fixed": lambda: FixedDrafter(TreeTopology.chain(2), [1, 2]),
}


@pytest.mark.parametrize("make", DRAFTERS.values(), ids=DRAFTERS)
def test_every_drafter_keeps_the_contract(make: Callable[[], Drafter]) -> None:
    drafter = make()
    tree = drafter.draft(STATE)

    assert tree.num_nodes == drafter.num_nodes
    assert tree.max_depth == drafter.max_depth >= int(tree.depth.max())
    assert int(tree.tokens[0]) == 5
    siblings = list(zip(tree.parent[1:].tolist(), tree.tokens[1:].tolist(), strict=True))
    assert len(set(siblings)) == len(siblings)
    assert torch.equal(tree.depth[1:], tree.depth[tree.parent[1:]] + 1)
