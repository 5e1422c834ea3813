import torch

from medusa_core.acceptance.rule import Acceptance, deepest_path
from medusa_core.tree import CandidateTree, TreeTopology


def test_the_path_is_padded_with_zeros_that_the_count_excludes() -> None:
    tree = CandidateTree.from_topology(TreeTopology.from_paths([(0,), (1,), (1, 0), (1, 0, 0)]), torch.arange(5))
    alive = torch.tensor([True, False, True, True, False])

    path, count = deepest_path(tree, alive)

    assert path.tolist() == [0, 2, 3, 0]
    assert int(count) == 3


def test_last_and_bonus_stand_at_the_end_of_the_path() -> None:
    accepted = Acceptance(torch.tensor([0, 2, 3, 0]), torch.tensor([7, 8, 9, 7]), torch.tensor(3))

    assert accepted.last.tolist() == [3]
    assert int(accepted.bonus) == 9
