import torch

from medusa_core.drafters import DraftState, RootOnly
from tests.cast import CPU


def test_the_tree_of_plain_decoding_is_its_root() -> None:
    tree = RootOnly(CPU).draft(DraftState(torch.tensor(9), torch.zeros(4), torch.tensor(3)))

    assert tree.tokens.tolist() == [9]
    assert (tree.num_nodes, tree.max_depth) == (1, 0)
    assert tree.used.tolist() == [True]
